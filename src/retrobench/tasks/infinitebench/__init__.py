"""InfiniteBench: twelve tasks on contexts of about 100K tokens."""
