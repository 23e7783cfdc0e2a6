"""Serving without a server: requests, step costs of machines, and a replay of their queue."""
