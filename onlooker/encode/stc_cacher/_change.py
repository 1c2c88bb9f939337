"""How much each token changed, and which tokens changed most."""

import functools

import torch
from torch import Tensor

from onlooker.core.contracts import VisionTower

SKETCH = 32
"""Channels of a sketch: 32 choose as well as all channels, 16 do not."""
STEPS = 1024
"""Changes count in steps of this part of the mean token's norm, so that rounding settles no choice."""


@functools.lru_cache(maxsize=16)
def projection(dim: int, device: torch.device, channels: int = SKETCH) -> Tensor:
    """A random projection that keeps distances, float32 `[dim, channels]`: the same for every stream and layer."""
    signs = torch.randint(0, 2, (dim, channels), generator=torch.Generator().manual_seed(7)) * 2 - 1
    return (signs / channels**0.5).to(device)


def sketch(rows: Tensor, channels: int = SKETCH) -> Tensor:
    """Rows `[..., dim]` by their projection, float32 `[..., channels]`. The sketch of a sum is the sum of sketches."""
    return rows.detach().float() @ projection(rows.shape[-1], rows.device, channels)


def mean_lengths(then: Tensor) -> Tensor:
    """Mean norm of the tokens of references, of which these are sketches (`[..., tokens, 32]`), `[...]`."""
    return torch.linalg.vector_norm(then, dim=-1).mean(-1).clamp_min_(1e-12)


def changes(now: Tensor, then: Tensor, tower: VisionTower) -> Tensor:
    """How far tokens are from their references, `[streams, units]`; `now` and `then` are sketches of both,
    `[streams, tokens, 32]`. A unit is what is chosen as a whole: each of the leading pinned tokens of a tower with
    groups, then every group."""
    change = torch.linalg.vector_norm(now - then, dim=-1)
    if tower.group > 1:
        groups = change[:, tower.pinned :].unflatten(1, (-1, tower.group)).mean(-1)
        change = torch.cat([change[:, : tower.pinned], groups], dim=1)
    return change


def steps_of_change(change: Tensor, length: Tensor) -> Tensor:
    """Changes `[streams, units]` in steps (see `STEPS`) of the mean norms `[streams]`, int32."""
    return (change * (STEPS / length)[:, None]).add_(0.5).clamp_max_(2**30).int()


def thresholds(length: Tensor, tau: Tensor) -> Tensor:
    """The least change that has more steps than `tau` (float32 `[streams]`) does, `[..., streams]`, at mean norms
    `[..., streams]`: one of zero never has."""
    return ((tau * STEPS + 0.5).int() + 0.5) * length / STEPS


def most_changed(change: Tensor, length: Tensor, threshold: Tensor, count: int, tower: VisionTower) -> Tensor:
    """The `count` tokens that changed most of those that changed enough, bool `[streams, tokens]`.

    Of equal changes (in steps) the first counts. Groups are chosen whole.
    """
    enough, most = change >= threshold[:, None], count // tower.group
    if int(enough.sum(1).max()) > most:
        best = steps_of_change(change, length).argsort(dim=1, descending=True, stable=True)[:, :most]
        enough &= torch.zeros_like(enough).scatter_(1, best, True)
    return tokens_of(enough, tower)


def tokens_of(units: Tensor, tower: VisionTower) -> Tensor:
    """A mask of units, `[..., units]`, as one of tokens."""
    if tower.group == 1:
        return units
    groups = units[..., tower.pinned :].repeat_interleave(tower.group, dim=-1)
    return torch.cat([units[..., : tower.pinned], groups], dim=-1)
