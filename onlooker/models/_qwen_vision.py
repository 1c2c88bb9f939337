"""Vision towers of the Qwen-VL families, taken apart: one frame is one row of tokens in the order of merge blocks.

Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923; Qwen Team, "Qwen3-VL Technical Report", arXiv 2511.21631.

A patch embedding takes two frames at once. Here a frame is its own pair, as on the families' image path, so that it can
be encoded, and asked about, the moment it arrives; no frame ever attends to another one.

Tokens stay in the order of merge blocks (four neighbours that become one token lie side by side, blocks in raster
order) in all layers and do not move to windows and back: which keys a query may see is the attention's own business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import VisionTower
from onlooker.core.errors import ModelError

GEOMETRIES_KEPT = 32
"""Frame sizes whose angles and windows are kept at hand."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Which tokens attend to each other."""

    number: Tensor
    """Window of each token, int64 `[tokens]`."""
    members: Tensor
    """Tokens of each window, int64 `[windows, most]`; short windows are filled up with token 0."""
    filled: Tensor | None
    """Which places of `members` are taken, bool `[windows, 1, 1, most]`; None when all are."""
    place: Tensor
    """Where in the flattened `members` each token is, int64 `[tokens]`."""

    @classmethod
    def of(cls, number: Tensor) -> "Windows":
        """Windows from the window of each token, int64 `[tokens]`, numbered from 0 without gaps. Waits for the device,
        once for a frame size."""
        counts = number.bincount()
        most = int(counts.max())
        order = number.argsort(stable=True)
        within = torch.arange(len(number), device=number.device) - (counts.cumsum(0) - counts)[number[order]]
        place = torch.empty_like(order)
        place[order] = number[order] * most + within
        members = torch.zeros(len(counts) * most, dtype=torch.int64, device=number.device)
        members[place] = torch.arange(len(number), device=number.device)
        filled = torch.arange(most, device=number.device) < counts[:, None]
        ragged = not bool(filled.all())
        return cls(number, members.view(-1, most), filled[:, None, None] if ragged else None, place)

    @property
    def mean_attended(self) -> float:
        """Keys a query sees, mean over queries."""
        return float(self.number.bincount().double().square().sum() / len(self.number))


class VisionBlock:
    """One layer of a Qwen tower at one frame size. Holds a module and geometry, no state of its own.

    Queries, keys and values are views of one weight, taken when they are used, so that nothing is copied and training
    sees the module's own parameters.
    """

    def __init__(self, module: Any, angles: tuple[Tensor, Tensor], windows: Windows | None) -> None:
        attention = module.attn
        self._qkv, self._num_heads, self._scale = attention.qkv, attention.num_heads, attention.scaling
        self._cos, self._sin = angles
        self._windows = windows
        self._mlp_norm, self._mlp = module.norm2, module.mlp
        self.norm, self.out = module.norm1, attention.proj

    def queries(self, normed: Tensor) -> Tensor:
        return self._third(normed, 0)

    def keys(self, normed: Tensor) -> Tensor:
        return self._third(normed, 1)

    def values(self, normed: Tensor) -> Tensor:
        return self._third(normed, 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, index: Tensor | None = None) -> Tensor:
        """Attention of all heads, rotated by row and column, within the token's window if the layer has windows."""
        cos, sin = (self._cos, self._sin) if index is None else (self._cos[index], self._sin[index])
        q = _rotate(self._heads(queries), cos, sin)
        k, v = _rotate(self._heads(keys), self._cos, self._sin), self._heads(values)
        windows = self._windows
        if windows is not None and index is None:
            return self._attend_within(windows, q, k, v)
        seen = None if windows is None or index is None else self.may_see(index)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self._scale)
        return attended.transpose(1, 2).flatten(2)

    def may_see(self, index: Tensor) -> Tensor:
        """Which keys the queries at `index` (`[streams, queries]`) may see, bool `[streams, 1, queries, tokens]`."""
        assert self._windows is not None, "this layer has no windows"
        number = self._windows.number
        return (number[index][:, :, None] == number)[:, None]

    def mlp(self, hidden: Tensor) -> Tensor:
        return self._mlp(self._mlp_norm(hidden))

    def _attend_within(self, windows: Windows, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All queries, window by window: the same as with a mask, without the products that a mask throws away."""
        streams, most = len(q), windows.members.shape[1]
        flat = windows.members.flatten()
        q, k, v = (part[:, flat].unflatten(1, (-1, most)).flatten(0, 1).transpose(1, 2) for part in (q, k, v))
        filled = None if windows.filled is None else windows.filled.repeat(streams, 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=filled, scale=self._scale)
        rows = attended.transpose(1, 2).flatten(2).unflatten(0, (streams, -1)).flatten(1, 2)
        return rows[:, windows.place]

    def _third(self, normed: Tensor, which: int) -> Tensor:
        width = self._qkv.out_features // 3
        part = slice(which * width, (which + 1) * width)
        return F.linear(normed, self._qkv.weight[part], self._qkv.bias[part])

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self._num_heads, -1))


class QwenVision:
    """The seeing half of a Qwen-VL network, in pieces through which gradients flow.

    It changes nothing about the network, so that a trainer may use it beside the network's own forward pass. Families
    say by overriding which layers have windows, which are tapped, and what is added to the patches.
    """

    def __init__(self, network: Any) -> None:
        self.module, self.config = network.model.visual, network.config.vision_config
        self.merge: int = self.config.spatial_merge_size
        if not isinstance(self.module.blocks[0].attn.qkv, torch.nn.Linear):
            given = type(self.module.blocks[0].attn.qkv).__name__
            raise ModelError(
                "the vision tower's weights are of a kind we cannot take apart", given=given, do="load it unquantised"
            )
        # Geometry, not state: the same for every stream with frames of that size.
        self.tower = lru_cache(maxsize=GEOMETRIES_KEPT)(self._tower)
        """The tower at `(rows, cols)` patches."""

    @property
    def device(self) -> torch.device:
        """Where geometry is kept: with the weights, or on the CPU where a network has sizes only."""
        device = self.module.patch_embed.proj.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def factor(self) -> int:
        """Side of a merge block in pixels."""
        return self.config.patch_size * self.merge

    def patches(self, pixels_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of pixels `[..., rows, cols]`. Raises `ModelError` unless blocks are whole."""
        rows, cols = pixels_shape[-2:]
        if not rows or not cols or rows % self.factor or cols % self.factor:
            raise ModelError("pixels do not fit the tower", given=str(pixels_shape), do="use preprocess")
        return rows // self.config.patch_size, cols // self.config.patch_size

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """`[streams, channels, rows, cols]` to `[streams, tokens, dim]`, in the order of merge blocks."""
        proj, size = self.module.patch_embed.proj, self.config.patch_size
        rows, cols = self.patches(tuple(pixels.shape))
        blocks = pixels.to(proj.weight.dtype).unflatten(3, (-1, self.merge, size)).unflatten(2, (-1, self.merge, size))
        # [streams, channels, block row, in row, y, block col, in col, x]
        blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4).unsqueeze(3)
        twice = blocks.expand(-1, -1, -1, self.config.temporal_patch_size, -1, -1).flatten(2)
        hidden = F.linear(twice, proj.weight.flatten(1), proj.bias)
        return hidden + self.added_to_patches(rows, cols).to(hidden.dtype)

    def added_to_patches(self, rows: int, cols: int) -> Tensor:
        """What is added to every frame's patches, in the order of merge blocks; nothing by default."""
        return self.module.patch_embed.proj.weight.new_zeros(1)

    def windows(self, rows: int, cols: int) -> Windows | None:
        """The windows of the layers that have some, at `(rows, cols)` patches."""
        return None

    def has_windows(self, layer: int) -> bool:
        """True for a layer that attends within windows only."""
        return False

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Layers whose output is used too, ascending."""
        return ()

    def merged(self, hidden: Tensor, merger: Any) -> Tensor:
        """`[streams, tokens, dim]` through a merger to `[streams, tokens / group, hidden_dim]`, in raster order."""
        return merger(hidden.contiguous().flatten(0, 1)).unflatten(0, (len(hidden), -1))

    def to_blocks(self, image: Tensor) -> Tensor:
        """`[rows, cols, ...]` of patches to `[tokens, ...]` in the order of merge blocks."""
        split = image.unflatten(1, (-1, self.merge)).unflatten(0, (-1, self.merge))
        return split.transpose(1, 2).flatten(0, 3)

    def _tower(self, rows: int, cols: int) -> VisionTower:
        config, device = self.config, self.device
        windows = self.windows(rows, cols)
        raster = self.to_blocks(torch.arange(rows * cols, device=device).view(rows, cols))
        angles = self._angles(raster // cols, raster % cols)
        inside = [windows if self.has_windows(n) else None for n in range(len(self.module.blocks))]
        layers = [VisionBlock(block, angles, its) for block, its in zip(self.module.blocks, inside, strict=True)]
        seen = [rows * cols if its is None else its.mean_attended for its in inside]
        gated = hasattr(self.module.blocks[0].mlp, "gate_proj")
        return VisionTower(
            layers=layers,
            num_tokens=rows * cols,
            dim=config.hidden_size,
            group=self.merge**2,
            tap_layers=frozenset(self.tap_layers),
            mlp_dim=config.intermediate_size * 3 // 2 if gated else config.intermediate_size,
            mean_attended=None if windows is None else sum(seen) / len(seen),
            grid=(rows, cols),
            raster=raster,
        )

    def _angles(self, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every token, float32 `[tokens, 1, head_dim]`.

        Half the frequencies turn with the row, half with the column, and both halves of a head turn alike.
        """
        half = self.config.hidden_size // self.config.num_heads // 2
        settings: Mapping[str, Any] = getattr(self.config, "rope_parameters", None) or {}
        theta = settings.get("rope_theta", 10000.0)
        step = torch.arange(0, half, 2, dtype=torch.float32, device=row.device) / half
        turn = torch.stack([row, col], dim=-1)[:, :, None].float() / theta**step
        both = turn.flatten(1).repeat(1, 2)[:, None]
        return both.cos(), both.sin()


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[streams, tokens, heads, head_dim]` by angles `[tokens or (streams, tokens), 1, head_dim]` in float32."""
    half = states.shape[-1] // 2
    plain = states.float()
    turned = torch.cat((-plain[..., half:], plain[..., :half]), dim=-1)
    return (plain * cos + turned * sin).to(states.dtype)
