"""Masked attention on a GPU: the torch op, its launches and its kernels."""
