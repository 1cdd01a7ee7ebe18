"""ViT: patches, pre-norm blocks, one head. Letters: B batch, N patches, T tokens, C channels.

Source: Dosovitskiy et al., arXiv 2010.11929, at the sizes that arXiv 2309.05375 trains on small images.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from gmmvit.checks import one_of, pair
from gmmvit.models.base import VisionTransformer
from gmmvit.models.layers import Block, Masking, choose_patch, patch_grid
from gmmvit.models.stem import make_stem

POOLS = ("mean", "cls")


class ViT(VisionTransformer):
    """Vision transformer with a mask in every attention layer.

    Args:
        image_size: int or (height, width) in pixels, a multiple of the patch.
        patch_size: int or (height, width); default: about an eighth of the image, which makes 8 x 8 patches.
        channels, num_classes: image channels; width of the head.
        dim, depth, num_heads, head_dim, mlp_ratio: sizes; the defaults are the paper's (2.7 M parameters).
        mask: "none", "elm" or "gmm".
        mode: "multiply", "log" or "post".
        mask_options: further arguments of `GaussianMixtureMask` or `ElementwiseMask`.
        position_std: initial standard deviation of the position embeddings; 1 by default (the paper's), 0.1 is better
            with the mask start "conv", which already directs each head.
        stem: "patch" (linear, the paper's) or "conv" (`ConvStem`: small overlapping convolutions to the same grid).
        pool: what the head reads: "mean" of the patches, or "cls", a class token.
        qkv_bias, dropout, drop_path: drop_path is the same in every block, as in the paper's code.

    Input [B, channels, height, width], normalised; output logits [B, num_classes]. Another image size at run time
    interpolates the position embeddings and recomputes a Gaussian mixture mask.

    Raises ValueError for sizes that do not fit together, naming the argument.
    """

    family = "vit"
    sizes: ClassVar = {  # "tiny" and those named by depth (and width) come from the paper's code
        "tiny": {},
        "small": {"dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0},
        "d6": {"dim": 252, "depth": 6},
        "d8": {"dim": 192, "depth": 8, "num_heads": 6, "patch_size": 2},
        "d8-256": {"dim": 256, "depth": 8, "num_heads": 4, "patch_size": 2},
        "d15": {"dim": 144, "depth": 15},
        "d30": {"dim": 72, "depth": 30},
        "d30-108": {"dim": 108, "depth": 30},
        "d30-192": {"dim": 192, "depth": 30},
        "d60": {"dim": 72, "depth": 60},
    }

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] | None = None,
        channels: int = 3,
        num_classes: int = 10,
        dim: int = 192,
        depth: int = 9,
        num_heads: int = 12,
        head_dim: int | None = None,
        mlp_ratio: float = 2.0,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        stem: str = "patch",
        position_std: float = 1.0,
        pool: str = "mean",
        qkv_bias: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        one_of("pool", pool, POOLS)
        size = pair(image_size, "image_size")
        patch = choose_patch(patch_size, size, cells=8)
        embedding = make_stem(stem, patch, channels, dim)
        self.build_embedding(embedding, patch_grid(size, patch), dim, dropout, class_token=pool == "cls")
        masking = Masking(mask, mode, mask_options, self.prefix_tokens, dropout)
        self.blocks = nn.ModuleList()
        for layer in range(depth):
            place = layer / max(1, depth - 1)
            attention = masking.attention(dim, num_heads, self.grid, place, head_dim=head_dim, qkv_bias=qkv_bias)
            self.blocks.append(Block(attention, dim, mlp_ratio, dropout, drop_path))
        self.build_head(dim, num_classes)
