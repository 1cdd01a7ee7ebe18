"""Masked attention on a GPU: the op that torch sees, its launches and its kernels."""
