"""Vision towers of the Qwen-VL families, taken apart: one frame is one row of tokens in the order of merge blocks.

Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923; Qwen Team, "Qwen3-VL Technical Report", arXiv 2511.21631.

A patch embedding takes two frames at once: a pair, or a single frame twice, as on the families' image path. No patch in
time ever attends to another one.

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
from onlooker.kernels.head_attention import wide
from onlooker.kernels.window_attention import WindowTable
from onlooker.models._describing import attention_received
from onlooker.models._qwen_packed import PackedVisionBlock

GEOMETRIES_KEPT = 32
"""Frame sizes whose angles and windows are kept at hand."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Which tokens attend to each other, kept in groups of windows of equal size, so that no attention needs a mask."""

    number: Tensor
    """Window of each token, int64 `[tokens]`."""
    groups: tuple[Tensor, ...]
    """Tokens of the windows of one size, int64 `[windows, size]`, a tensor for each size."""
    start: Tensor
    """Tokens in the groups before the one of each token, int64 `[tokens]`."""
    length: Tensor
    """Tokens in the group of each token, int64 `[tokens]`."""
    within: Tensor
    """Place of each token in its flattened group, int64 `[tokens]`."""

    @classmethod
    def of(cls, number: Tensor) -> "Windows":
        """Windows from the window of each token, int64 `[tokens]`, numbered from 0 without gaps. Waits for the device,
        once for a frame size."""
        counts, order = number.bincount(), number.argsort(stable=True)
        sizes = counts[number[order]]
        groups = tuple(order[sizes == size].view(-1, size) for size in sorted(set(counts.tolist())))
        start, length, within = (torch.empty_like(number) for _ in range(3))
        before = 0
        for group in groups:
            members = group.flatten()
            start[members], length[members] = before, len(members)
            within[members] = torch.arange(len(members), device=number.device)
            before += len(members)
        return cls(number, groups, start, length, within)

    def rows(self, streams: int, index: Tensor | None = None) -> Tensor:
        """Where tokens lie in a list of the windows of all streams, group by group, int64 `[streams, queries]`.

        `index` are the tokens of each stream, int64 `[streams, queries]`; none: all of them.
        """
        start, length, within = self.start, self.length, self.within
        if index is not None:
            start, length, within = start[index], length[index], within[index]
        return start * streams + length * torch.arange(streams, device=start.device)[:, None] + within

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
        q, k, v = self._heads(queries), self._heads(keys), self._heads(values)
        if self._windows is not None:
            return self._attend_within(self._windows, q, k, v, index)
        q, k = self._turned(q, index), self._turned(k)
        return self._attended(q, k, v).flatten(2)

    def scores(self, queries: Tensor, keys: Tensor, asking: Tensor | None, seen: Tensor | None) -> Tensor:
        """Scaled products of all heads, rotated by row and column; -inf between windows."""
        q, k = self._turned(self._heads(queries), asking), self._turned(self._heads(keys), seen)
        q, k = (wide(part.transpose(1, 2)) for part in (q, k))
        products = (q * self._scale) @ k.transpose(2, 3)
        if self._windows is None:
            return products
        number = self._windows.number
        mine, other = (number if at is None else number[at] for at in (asking, seen))
        return products.masked_fill(mine[:, None] != other[None, :], -torch.inf)

    def mlp(self, hidden: Tensor) -> Tensor:
        return self._mlp(self._mlp_norm(hidden))

    @property
    def sees_all(self) -> bool:
        """Whether every token attends to all others."""
        return self._windows is None

    def received(self, hidden: Tensor) -> Tensor:
        """Attention that every token gets of all, float32 `[streams, tokens]`, of the hidden states that enter."""
        normed = self.norm(hidden)
        queries, keys = (self._turned(self._heads(part(normed))) for part in (self.queries, self.keys))
        return attention_received(queries, keys, self._scale)

    def _attend_within(self, windows: Windows, q: Tensor, k: Tensor, v: Tensor, index: Tensor | None) -> Tensor:
        """Window by window: the same as with a mask, without the products that a mask throws away.

        Queries of some tokens only are written to their places among all. The empty places are computed for nothing,
        which costs less than a mask does: a window has far fewer keys than a frame, and the shapes stay fixed.
        """
        streams = len(k)
        rows = windows.rows(streams, index).flatten()
        apart = None
        if index is not None:
            places = q.new_zeros(streams * k.shape[1], *q.shape[2:])
            spread = places.index_copy(0, rows, self._turned(q, index).flatten(0, 1))
            apart = spread.split([streams * group.numel() for group in windows.groups])
        parts = []
        for at, group in enumerate(windows.groups):
            if apart is None:
                own = self._turned(q[:, group], group).flatten(0, 1)
            else:
                own = apart[at].unflatten(0, (-1, group.shape[1]))
            seen_k, seen_v = self._turned(k[:, group], group).flatten(0, 1), v[:, group].flatten(0, 1)
            parts.append(self._attended(own, seen_k, seen_v).flatten(0, 1))
        return torch.cat(parts).index_select(0, rows).unflatten(0, (streams, -1)).flatten(2)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Plain attention; all `[batch, tokens, heads, head_dim]`."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=self._scale).transpose(1, 2)

    def _turned(self, states: Tensor, index: Tensor | None = None) -> Tensor:
        """Heads rotated by the angles of their tokens; `index`: which tokens they are, none: all in order."""
        cos, sin = (self._cos, self._sin) if index is None else (self._cos[index], self._sin[index])
        return _rotate(states, cos, sin)

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
        """`[streams, channels, rows, cols]` to `[streams, tokens, dim]`, in the order of merge blocks.

        Channels are those of one frame after the other; a single frame is taken as often as a patch has frames. Raises
        `ModelError` for another number of frames.
        """
        proj, size = self.module.patch_embed.proj, self.config.patch_size
        rows, cols = self.patches(tuple(pixels.shape))
        frames, channels = self.config.temporal_patch_size, self.config.in_channels
        if pixels.shape[1] not in (channels, frames * channels):
            given = f"{pixels.shape[1]} channels"
            raise ModelError("pixels do not fit the tower", given=given, do=f"give {channels} or {frames * channels}")
        blocks = pixels.to(proj.weight.dtype).unflatten(3, (-1, self.merge, size)).unflatten(2, (-1, self.merge, size))
        blocks = blocks.unflatten(1, (-1, channels))
        # [streams, frames, channels, block row, in row, y, block col, in col, x]
        blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(1, 4)
        blocks = blocks.expand(-1, -1, -1, frames, -1, -1).flatten(2)
        hidden = F.linear(blocks, proj.weight.flatten(1), proj.bias)
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
            pack=lambda: self._packed(angles, inside),
        )

    def _packed(self, angles: tuple[Tensor, Tensor], inside: list[Windows | None]) -> list[PackedVisionBlock]:
        """All layers in packed form. Raises `ModelError` for an MLP whose activation has none."""
        if (name := self.config.hidden_act) not in ("silu", "gelu_pytorch_tanh"):
            raise ModelError("this tower's activation has no packed form", given=name, do="run it without graphs")
        cos, sin = (part[:, 0, : part.shape[-1] // 2].contiguous() for part in angles)
        some = next((windows for windows in inside if windows is not None), None)
        table = None if some is None else WindowTable.of(some.number)
        return [
            PackedVisionBlock(block, (cos, sin), None if windows is None else table)
            for block, windows in zip(self.module.blocks, inside, strict=True)
        ]

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
    """Rotate `[..., tokens, heads, head_dim]` by angles `[..., tokens, 1, head_dim]` in float32."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    # The angles are float32, and so are the products: no copy of the states in float32 is made for them.
    return (states * cos + turned * sin).to(states.dtype)
