"""Training of the embedded model: synthetic text families, model, loop."""
