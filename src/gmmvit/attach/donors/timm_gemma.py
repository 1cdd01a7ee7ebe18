"""timm's Gemma 4 vision encoder: normalised queries, keys and values, rotated along both axes."""

from typing import Any

from torch import Tensor, nn

from gmmvit.attach.surgery import GridRecorder, MaskedDonor, Tower

_MODULE = "timm.models.gemma4_vit"


class GemmaAttention(MaskedDonor):
    """Logits are the plain product of rotated queries and keys; a group of queries may share keys and values."""

    gmm_parts = frozenset(
        {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "v_norm", "attn_drop", "proj_drop"}
    )

    def forward(self, x: Tensor, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, N, C] -> the same."""
        from timm.models.gemma4_vit import apply_multidimensional_rope as rotate

        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.num_heads, -1)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.num_kv_heads, -1)))
        v = self.v_norm(self.v_proj(x).unflatten(-1, (self.num_kv_heads, -1)))
        q, k = rotate(q, rope_cos, rope_sin), rotate(k, rope_cos, rope_sin)
        k, v = (y.repeat_interleave(self.num_kv_groups, dim=2) for y in (k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        out = self.gmm_attend(q, k, v, attn_mask, scale=1.0)
        return self.proj_drop(self.o_proj(out.transpose(1, 2).flatten(2)))


class GemmaRecorder(GridRecorder):
    """Its patch embedding: one grid for a batch of images; rows and columns of every patch for a batch of patches."""

    def gmm_note(self, out: Any, x: Any, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None) -> None:
        images = x["patches"] if isinstance(x, dict) else x
        patch_coord = x.get("patch_coord", patch_coord) if isinstance(x, dict) else patch_coord
        if patch_coord is None:
            (rows, cols), positions = (s // p for s, p in zip(images.shape[-2:], self.patch_size, strict=True)), None
        else:
            positions = patch_coord.clamp(min=0)  # -1 marks padding
            rows, cols = (positions.amax((0, 1)) + 1).tolist()
        self.gmm_write((rows, cols), positions, out[0])


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """The encoder keeps no image size: its grid is that of the images which the whole model was trained on."""
    encoder: Any = next(
        (
            a
            for a in ancestors
            if any(f"{c.__module__}.{c.__name__}" == f"{_MODULE}.Gemma4VitEncoder" for c in type(a).__mro__)
        ),
        None,
    )
    if encoder is None:
        return None
    size = next((cfg["input_size"] for a in ancestors if (cfg := getattr(a, "pretrained_cfg", None))), None)
    grid = None if size is None else (size[-2] // encoder.patch_size[0], size[-1] // encoder.patch_size[1])
    return Tower(encoder.patch_embed, grid, 0, GemmaRecorder)


ATTENTIONS: dict[str, type[MaskedDonor]] = {f"{_MODULE}.Gemma4Attention": GemmaAttention}
LEFT_ALONE: dict[str, str] = {}
