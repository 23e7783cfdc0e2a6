"""Where keys and values live: stores, page tables, caches and copies between tiers."""
