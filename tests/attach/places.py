"""Where the queries and keys of each donor's attentions are, taken from the donor itself, not from our code.

A place is (row, column) in steps of the keys' grid, in the order of the donor's tokens.
"""

import itertools

import torch

# Between the stages of LeViT and EfficientFormer 2.
_EVERY_SECOND = ("AttentionDownsample", "LevitAttentionSubsample", "Attention2dDownsample")


def places(model, layer, images):
    """Pairs (queries, keys) of lists of places: one for the whole batch, or one for each sample."""
    kind = type(layer).__name__.removeprefix("Masked")
    if isinstance(images, dict):  # patches of several grids
        return [(sample, sample) for sample in images["patch_coord"].tolist()]
    if hasattr(layer, "q_pool"):  # of SAM 2
        keys = _rows_and_columns(*layer.gmm_mask.grid)
        return [(keys if layer.q_pool is None else _centres(layer.gmm_mask.grid, layer.q_pool), keys)]
    if kind == "MultiScaleAttention":
        return [tuple(_centres(layer.gmm_mask.grid, pool) for pool in (layer.pool_q, layer.pool_k))]
    if kind == "GlobalSubSampleAttn" or hasattr(layer, "sr"):
        queries = _rows_and_columns(*layer.gmm_mask.grid)
        return [(queries, queries if layer.sr is None else _centres(layer.gmm_mask.grid, layer.sr))]
    for name in ("sequence_reduction", "spatial_reduction"):  # of SegFormer and PVT in transformers
        if hasattr(layer, name):
            conv = getattr(getattr(layer, name), "sequence_reduction", getattr(layer, name))
            return [(_rows_and_columns(*layer.gmm_mask.grid), _centres(layer.gmm_mask.grid, conv))]
    if kind == "CvtSelfAttention":
        both = (layer.convolution_projection_query, layer.convolution_projection_key)
        return [tuple(_centres(layer.gmm_mask.grid, x.convolution_projection.convolution) for x in both)]
    if kind == "Sam2MultiScaleAttention":
        pool = None if layer.query_stride is None else torch.nn.MaxPool2d(tuple(layer.query_stride))
        return [(_centres(layer.gmm_mask.grid, pool), _rows_and_columns(*layer.gmm_mask.grid))]
    if kind == "MaskUnitAttention":
        return [_in_units(model, layer)]
    keys = _rows_and_columns(*layer.gmm_mask.grid)
    if kind in _EVERY_SECOND:
        return [([(r, c) for r, c in keys if r % 2 == 0 and c % 2 == 0], keys)]
    return [(keys, keys)]


def _rows_and_columns(rows, cols):
    return list(itertools.product(range(rows), range(cols)))


def _centres(grid, pool):
    """The centres of a convolution's windows on a map of that size."""
    if pool is None:
        return _rows_and_columns(*grid)
    channels, dtype = getattr(pool, "in_channels", 1), getattr(getattr(pool, "weight", None), "dtype", None)
    (rows, cols) = pool(torch.zeros(1, channels, *grid, dtype=dtype)).shape[-2:]
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    kernel, stride, padding = (x[0] if isinstance(x, tuple) else x for x in sizes)
    centre = (kernel - 1) / 2 - padding
    return [(stride * r + centre, stride * c + centre) for r, c in _rows_and_columns(rows, cols)]


def _in_units(model, layer):
    """The donor's own reordering, applied to rows and columns; then it pools them as it pools queries, by the mean."""
    tokens = torch.tensor(_rows_and_columns(*model.unroll.size), dtype=torch.float64)
    tokens = model.unroll(tokens[None])[0]
    for block in model.blocks:
        step, attention = block.attn.q_stride, block.attn
        windows = len(tokens) // (step * attention.window_size) if attention.use_mask_unit_attn else 1
        pooled = tokens.view(step, -1, 2).mean(0)
        if attention is layer:
            keys, queries = tokens.view(-1, windows, 2), pooled.view(-1, windows, 2)
            spacing = (tokens[:, 0].unique()[1] - tokens[:, 0].unique()[0]).item()
            offsets = (keys[None] - queries[:, None]).unbind(2)
            assert all(torch.equal(o, offsets[0]) for o in offsets)  # every window is the first one, moved
            return (queries[:, 0] / spacing).tolist(), (keys[:, 0] / spacing).tolist()
        tokens = pooled
    raise AssertionError("the layer is not in the model")
