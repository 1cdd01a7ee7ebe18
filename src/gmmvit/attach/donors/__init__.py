"""Masked versions of the attentions of timm, transformers and torchvision, one file per kind of attention."""
