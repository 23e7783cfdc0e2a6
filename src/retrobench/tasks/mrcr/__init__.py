"""MRCR: the i-th of several equal requests in a long conversation."""
