"""What every family shares: embedding, the walk through the blocks, pooling, head, features, saving and loading.

Letters: B batch, T tokens (prefix first), N patches, C channels.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmmvit.checks import above_zero, fraction, integer, is_integer, one_of
from gmmvit.masks import is_mask_parameter, tables_together
from gmmvit.models.layers import Block, Grid, MaskedAttention, init_weights, resample_position
from gmmvit.text import short
from gmmvit.weight_files import load_safetensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_COUNTS = ("channels", "dim", "token_dim", "class_depth", "window_size")
# Positions and tokens, as our families, timm and transformers name them.
_WITHOUT_DECAY = (
    "pos_embed",
    "position_embedding",
    "cls_token",
    "dist_token",
    "distillation_token",
    "register_token",
    "relative_position",
)


def undecayed_parameters(model: nn.Module) -> set[str]:
    """Names of a model's position embeddings, tokens and mask parameters, which get no weight decay."""
    return {
        name
        for name, _ in model.named_parameters()
        if is_mask_parameter(name) or any(part in name for part in _WITHOUT_DECAY)
    }


class Stage(nn.Module):
    """The blocks of one resolution and the step to the next, None after the last."""

    def __init__(self, blocks: Sequence[nn.Module], reduction: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.reduction = reduction


class VisionTransformer(nn.Module):
    """Base of the families. Input [B, channels, height, width], normalised; output logits [B, num_classes].

    A family builds `patch_embed`, its `blocks` or `stages` and the rest in its constructor; `config` keeps the
    arguments. The constructor takes at least image_size, channels, num_classes, mask, mode, mask_options, dropout and
    drop_path, and sets `grid` and `prefix_tokens`, or calls `build_embedding`, which sets both.
    """

    family: ClassVar[str]  # its name
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}  # arguments by size; "tiny" is that of the paper's tables
    note: ClassVar[str] = ""  # shown by `gmmvit models` beside its numbers
    hierarchical: ClassVar[bool] = False  # stages of several resolutions instead of blocks of one
    norm_before_pool: ClassVar[bool] = False  # mean of the normed tokens, or norm of the mean
    patch_embed: Any  # a module with a `grid` of images
    pos_embed: Tensor
    cls_token: Tensor | None
    blocks: nn.ModuleList  # of a family with one resolution
    stages: nn.ModuleList  # of `Stage`, of a family with several
    norm: nn.LayerNorm
    head: nn.Module

    def __init__(self, arguments: dict[str, Any]) -> None:
        """`arguments` are the locals() of the family's constructor at its first statement.

        Raises TypeError or ValueError for an argument that is not a number but should be, or that is out of range.
        """
        super().__init__()
        given = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
        self._check_arguments(given)
        self.config = {name: int(value) if is_integer(value) else value for name, value in given.items()}
        self.grad_checkpointing = False

    def _check_arguments(self, given: dict[str, Any]) -> None:
        """Checks the arguments that families share; each checks its sizes of images, patches and stages itself."""
        counts = _COUNTS if self.hierarchical else (*_COUNTS, "depth", "num_heads")
        for name in counts:
            if name in given:
                integer(name, given[name])
        if given.get("head_dim") is not None:
            integer("head_dim", given["head_dim"])
        integer("num_classes", given["num_classes"], 2)
        for name in ("mlp_ratio", "position_std"):
            if name in given:
                above_zero(name, given[name])
        for name in ("dropout", "drop_path"):
            fraction(name, given[name])
        options = given["mask_options"]
        if options is not None and not isinstance(options, dict):
            raise TypeError(f"mask_options must be a dict of options of the mask, or None, got {short(options)}")

    def build_embedding(self, patch_embed: nn.Module, grid: Grid, dim: int, dropout: float, class_token: bool) -> None:
        """Sets the patch embedding, learned positions and, if asked for, a class token."""
        self.patch_embed, self.grid = patch_embed, grid
        self.prefix_tokens = int(class_token)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix_tokens + grid[0] * grid[1], dim))
        self.dropout = nn.Dropout(dropout)

    def build_head(self, dim: int, num_classes: int) -> None:
        """Sets the final norm and the classifier, then initialises all layers."""
        self.num_features, self.num_classes = dim, num_classes
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.apply(self.init_layer)
        if (own_start := getattr(self.patch_embed, "init_layer", None)) is not None:
            self.patch_embed.apply(own_start)
        self.init_tokens()

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Initialises one layer; for `apply`."""
        init_weights(module)

    @torch.no_grad()
    def init_tokens(self) -> None:
        """Initialises the class token (standard normal) and the position embeddings."""
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token)
        nn.init.normal_(self.pos_embed, std=self.config.get("position_std", 1.0))

    def steps(self) -> list[Any]:
        """The modules that tokens pass through, in order; each takes (tokens, grid) and has a `next_grid`."""
        if not self.hierarchical:
            return list(self.blocks)
        stages: list[Any] = list(self.stages)
        return [step for stage in stages for step in (*stage.blocks, stage.reduction) if step is not None]

    def feature_steps(self) -> list[int]:
        """Indices of the steps after which intermediate features are taken: every block, or the last of every stage."""
        steps = self.steps()
        if not self.hierarchical:
            return list(range(len(steps)))
        return [index - 1 for index, step in enumerate(steps) if not isinstance(step, Block)] + [len(steps) - 1]

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Tokens with their positions, prefix first, and the grid of the patches: [B, T, dim], (rows, cols)."""
        grid = self.patch_embed.grid(images)
        x = self.patch_embed(images)
        if self.prefix_tokens:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)  # type: ignore[union-attr]
        return self.dropout(x + resample_position(self.pos_embed, self.grid, grid, self.prefix_tokens)), grid

    def tables(self, x: Tensor, grid: Grid) -> dict[nn.Module, dict[str, Tensor]]:
        """Mask tables computed together, as `run` takes them, by step. None in torch.compile, which makes as many
        kernels either way, nor in torch.export, which may keep the grid dynamic."""
        if torch.compiler.is_compiling() or grid != self.grid:
            return {}
        layers = {step: step.attn for step in self.steps() if isinstance(step, Block)}
        masks = {step: layer.mask for step, layer in layers.items() if isinstance(layer, MaskedAttention)}
        tables = tables_together(masks.values(), x.device)
        return {step: {"table": tables[mask]} for step, mask in masks.items() if mask in tables}

    def run(self, step: nn.Module, x: Tensor, context: Any, **made: Any) -> Tensor:
        """Runs one step; gradient checkpointing recomputes its activations in the backward pass."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(step, x, context, use_reentrant=False, **made)
        return step(x, context, **made)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the last block, prefix first: [B, T, dim]."""
        x, grid = self.embed(images)
        tables = self.tables(x, grid)
        for step in self.steps():
            x = self.run(step, x, grid, **tables.get(step, {}))
            grid = step.next_grid(grid)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Tokens [B, T, dim] -> one normed vector per image [B, dim]."""
        if self.norm_before_pool:
            return self.norm(x).mean(1)
        return self.norm(x[:, 0] if self.prefix_tokens else x.mean(1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, T, dim] -> logits [B, num_classes], or with `pre_logits` what the classifier reads, [B, dim]."""
        x = self.pool(x)
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Intermediate features: after every block or, in families with stages, after every stage.

        Args:
            indices: how many of the last (int), or which by index from 0 (negative from the end); all by default.
            norm: apply the final norm to those of its width.
            stop_early: skip the steps after the last index; only with `intermediates_only`.
            output_fmt: "NCHW": maps [B, C, rows, cols]; "NLC": patch tokens [B, N, C]. Prefix tokens are left out.
            intermediates_only: return only the list, not (tokens of `forward_features`, list).
        """
        one_of("output_fmt", output_fmt, ("NCHW", "NLC"))
        if stop_early and not intermediates_only:
            raise ValueError("stop_early=True leaves out the last tokens: it needs intermediates_only=True")
        wanted = self._wanted_steps(indices)
        x, grid = self.embed(images)
        tables = self.tables(x, grid)
        features = []
        for index, step in enumerate(self.steps()):
            if stop_early and index > max(wanted):
                break
            x = self.run(step, x, grid, **tables.get(step, {}))
            grid = step.next_grid(grid)
            if index in wanted:
                patches = self.norm(x) if norm and x.shape[-1] == self.num_features else x
                patches = patches[:, self.prefix_tokens :]
                features.append(patches.transpose(1, 2).unflatten(2, grid) if output_fmt == "NCHW" else patches)
        return features if intermediates_only else (x, features)

    def _wanted_steps(self, indices: int | Sequence[int] | None) -> set[int]:
        steps = self.feature_steps()
        count = len(steps)
        if indices is None:
            return set(steps)
        if isinstance(indices, int):
            if not 1 <= indices <= count:
                raise ValueError(f"indices must be between 1 and the {count} features of this model, got {indices}")
            return set(steps[-indices:])
        if not indices or any(not -count <= index < count for index in indices):
            raise ValueError(f"indices must name some of the {count} features of this model, got {list(indices)}")
        return {steps[index] for index in indices}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks keep only their inputs and run again in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of position embeddings, class tokens and mask parameters (1-d parameters are not listed)."""
        return undecayed_parameters(self)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Sets a new classifier with random weights; 0 removes it, and the model returns its features [B, dim].

        Raises ValueError for 1 or a negative number, TypeError for anything but an int.
        """
        integer("num_classes", num_classes, 0)
        if num_classes == 1:
            raise ValueError(f"num_classes must be 0 (no classifier) or at least 2, got {num_classes}")
        like = next(self.parameters())
        self.num_classes = self.config["num_classes"] = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            self.init_layer(self.head)
        self.head.train(self.training)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` (family and arguments of construction) and `model.safetensors` into `folder`."""
        from safetensors.torch import save

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = {"family": self.family, **self.config}
        (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        (path / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, commit_message: str = "Upload model"
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub, for `from_pretrained(repo_id)`.

        Args:
            repo_id: NAME or ORGANISATION/NAME; created if it does not exist.
            private: whether a repository created here is private.
            token: of an account that may write there; by default the one that `hf auth login` stored.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises what huggingface_hub raises.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            repository = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=commit_message)
        return commit.commit_url

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Loads a model that `save_pretrained` wrote, from a folder or, if there is none, from the Hugging Face Hub.

        Raises ValueError if it is of another family, FileNotFoundError if a file is missing.
        """
        files = [_pretrained_file(source, name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        config = json.loads(files[0].read_text())
        family = config.pop("family", None)
        if family != cls.family:
            raise ValueError(f"{files[0]} is a model of family {family!r}, {cls.__name__} is {cls.family!r}")
        headless = config["num_classes"] == 0
        model = cls(**{**config, "num_classes": 2} if headless else config)
        if headless:
            model.reset_classifier(0)
        model.load_state_dict(load_safetensors(files[1]))
        return model.eval()


def _pretrained_file(source: str | Path, name: str) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is not a folder written by save_pretrained")
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(source), name))
