"""Rotary positions applied to queries and keys, in float32, never written back over what was rotated.

A rotation by positions p, then by a step s, is one by p + s. So a key that lies rotated to the place where it was
written is read at another place by one rotation by the difference, which is the same for all tokens of a block.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onlooker.kernels.turning import MOST, Tables, has_kernels
from onlooker.kvstore.blocks import Offset

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions int64 `[axes, tokens]` to cosines and sines, float32 `[tokens, head_dim]` each."""


def rotate(states: Tensor, cos: Tensor, sin: Tensor, into: Tensor | None = None) -> Tensor:
    """Rotate `[..., tokens, head_dim]` by cosines and sines `[tokens, head_dim]` (half-split layout), perhaps `into` a
    tensor like it."""
    half = states.shape[-1] // 2
    plain = states.float()
    turned = torch.cat((-plain[..., half:], plain[..., :half]), dim=-1)
    if into is not None:
        return torch.add(plain * cos, turned * sin, out=into)
    return (plain * cos + turned * sin).to(states.dtype)


class Turning:
    """The rotary of a model for keys that are rotated already: a model may scale what it rotates, but only once."""

    def __init__(self, rotary: Rotary, axes: int, device: torch.device) -> None:
        self._rotary, self._axes, self._device = rotary, axes, device
        self._scale, _ = rotary(torch.zeros(axes, 1, dtype=torch.int64, device=device))
        self._tables: Tables | None = None

    def __call__(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of steps, as a `Rotary` gives them."""
        cos, sin = self._rotary(steps)
        return cos / self._scale, sin / self._scale

    def turned(self, keys: Sequence[Tensor], steps: Sequence[Offset]) -> Tensor:
        """Keys of neighbouring blocks, `[layers, kv_heads, tokens, head_dim]` each, turned by a step each, one behind
        the other. Does not wait for the device."""
        step, dim = steps[0], keys[0].shape[3]
        if len(keys) == 1 and min(step) == max(step) and 0 <= step[0] < MOST and has_kernels(self._device, dim):
            self._tables = self._tables or Tables(self, self._axes, self._device)
            return self._tables.turned(keys[0], step[0])
        turn = self(spread(steps, [one.shape[2] for one in keys], self._device))
        return rotate(keys[0] if len(keys) == 1 else torch.cat(list(keys), dim=2), *turn)


def spread(steps: Sequence[Offset], counts: Sequence[int], device: torch.device) -> Tensor:
    """The step of each block, for each of its tokens: int64 `[axes, tokens]`; of a single block only `[axes, 1]`.
    Does not wait for the device."""
    if len(steps) == 1 and min(steps[0]) == max(steps[0]):
        return torch.full((len(steps[0]), 1), steps[0][0], dtype=torch.int64, device=device)
    every = torch.tensor(list(steps)).T
    if len(steps) > 1:
        every = torch.repeat_interleave(every, torch.tensor(list(counts)), dim=1)
    if device.type == "cuda":
        every = every.pin_memory()  # so that the copy is not waited for
    return every.to(device, non_blocking=True)


def moved(positions: Tensor, offset: Offset) -> Tensor:
    """Local positions of one block, `[axes, tokens]`, moved by one integer per axis, so that its inner geometry stays.

    Without any upload, which would wait for the device: the prefix moves at every frame of a sliding window.
    """
    if min(offset) == max(offset):
        return positions + offset[0]
    return torch.stack([axis + step for axis, step in zip(positions, offset, strict=True)])
