"""Weights of the paper's own code, read and converted."""
