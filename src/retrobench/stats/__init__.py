"""Statistics over rows (numpy and pandas only)."""
