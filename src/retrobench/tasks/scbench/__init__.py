"""SCBench: several questions on one long context."""
