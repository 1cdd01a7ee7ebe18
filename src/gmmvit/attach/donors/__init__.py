"""How the mask gets into the attention of timm, transformers and torchvision, a file a kind of attention."""
