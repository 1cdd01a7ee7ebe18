"""Reads and converts weights of the paper's own code."""
