"""A tiny random clip encoder: a second tower that sees how the picture has changed in the last four patches."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import SideTower, VisionTower
from onlooker.core.state import StreamState

SIDE, DIM, PATCHES = 28, 24, 4


@dataclass
class Seen(StreamState):
    """The last patches, newest last."""

    replaces: ClassVar[bool] = True
    before: list[Tensor] = field(default_factory=list)


def weight(rows: int, cols: int, seed: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) / rows**0.5


class Layer:
    """One layer with random weights."""

    sees_all = True

    def __init__(self, seed: int) -> None:
        self._weights = [weight(DIM, DIM, 10 * seed + n) for n in range(5)]

    def norm(self, hidden):
        return torch.nn.functional.layer_norm(hidden, (DIM,))

    def queries(self, normed):
        return normed @ self._weights[0]

    def keys(self, normed):
        return normed @ self._weights[1]

    def values(self, normed):
        return normed @ self._weights[2]

    def attend(self, queries, keys, values, index=None):
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)

    def out(self, attended):
        return attended @ self._weights[3]

    def mlp(self, hidden):
        return torch.nn.functional.gelu(self.norm(hidden) @ self._weights[4])


class Motion(SideTower):
    """Luma of the newest patch less that of each of the three before it, 16 cells; fused by a scalar gate (MERV)."""

    name, offers = "motion", frozenset({"speed"})

    def __init__(self, width: int, version: str = "1", share: float = 0.5) -> None:
        self._in, self._out = weight(3 * (SIDE // 4) ** 2, DIM, 1), weight(DIM, width, 2)
        self._layers, self.version, self._share = [Layer(1), Layer(2)], version, share
        self.weights_bytes = 4 * (self._in.numel() + self._out.numel() + 2 * 5 * DIM * DIM)

    @classmethod
    def for_model(cls, spec, tower_dim):
        return cls(tower_dim)

    def new_state(self) -> Seen:
        return Seen()

    def preprocess(self, images) -> Tensor:
        luma = torch.from_numpy(np.stack(images)).float().mean((0, 3))[None, None] / 255
        return torch.nn.functional.interpolate(luma, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0]

    def embed_patches(self, pixels, states):
        rows = []
        for one, state in zip(pixels, states, strict=True):
            before = [*state.before, one.clone()][-PATCHES:]
            state.before = before
            past = [before[max(0, len(before) - 1 - n)] for n in (1, 2, 3)]
            rows.append(torch.cat([one - earlier for earlier in past]))
        cells = torch.stack(rows).unfold(2, SIDE // 4, SIDE // 4).unfold(3, SIDE // 4, SIDE // 4)
        return cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) @ self._in

    def tower(self, pixels_shape):
        return VisionTower(self._layers, 16, DIM, grid=(4, 4))

    def fuse(self, encoded, own, tower):
        mean = (own.hidden.mean(1, keepdim=True) @ self._out).to(encoded.hidden.dtype)
        return replace(encoded, hidden=(1 - self._share) * encoded.hidden + self._share * mean)
