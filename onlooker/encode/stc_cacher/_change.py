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
def projection(dim: int, device: torch.device) -> Tensor:
    """A random projection that keeps distances, float32 `[dim, 32]`: the same for every stream and layer."""
    signs = torch.randint(0, 2, (dim, SKETCH), generator=torch.Generator().manual_seed(7)) * 2 - 1
    return (signs / SKETCH**0.5).to(device)


def sketch(rows: Tensor) -> Tensor:
    """Rows `[..., dim]` by their projection, float32 `[..., 32]`. The sketch of a sum is the sum of the sketches."""
    return rows.detach().float() @ projection(rows.shape[-1], rows.device)


def steps_of_change(now: Tensor, then: Tensor, tower: VisionTower) -> Tensor:
    """How far tokens are from their references, int32 `[streams, units]`, in steps (see `STEPS`) of a mean token.

    `now` and `then` are sketches of the tokens and of the references, `[streams, tokens, 32]`. A unit is what is chosen
    as a whole: each of the leading pinned tokens of a tower with groups, then every group.
    """
    change = torch.linalg.vector_norm(now - then, dim=-1)
    if tower.group > 1:
        groups = change[:, tower.pinned :].unflatten(1, (-1, tower.group)).mean(-1)
        change = torch.cat([change[:, : tower.pinned], groups], dim=1)
    scale = torch.linalg.vector_norm(now, dim=-1).mean(1, keepdim=True).clamp_min_(1e-12)
    return change.mul_(STEPS / scale).add_(0.5).clamp_max_(2**30).int()


def wanted(steps: Tensor, tau: Tensor) -> Tensor:
    """Units whose change exceeds the threshold (`tau`, float32 `[streams]`), bool; one of zero never does."""
    return steps > (tau * STEPS + 0.5).int()[:, None]


def most_changed(steps: Tensor, tau: Tensor, count: int, tower: VisionTower) -> Tensor:
    """The `count` tokens that changed most of those that changed enough, bool `[streams, tokens]`.

    Of equal changes the first counts. Groups are chosen whole.
    """
    enough, most = wanted(steps, tau), count // tower.group
    if int(enough.sum(1).max()) > most:
        best = steps.argsort(dim=1, descending=True, stable=True)[:, :most]
        enough &= torch.zeros_like(enough).scatter_(1, best, True)
    return tokens_of(enough, tower)


def tokens_of(units: Tensor, tower: VisionTower) -> Tensor:
    """A mask of units, `[..., units]`, as one of tokens."""
    if tower.group == 1:
        return units
    groups = units[..., tower.pinned :].repeat_interleave(tower.group, dim=-1)
    return torch.cat([units[..., : tower.pinned], groups], dim=-1)
