"""Runs models: adapter to transformers, session, loader, KV placement and attention."""
