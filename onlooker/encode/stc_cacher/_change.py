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
    """Rows `[..., dim]` by their projection, float16 `[..., 32]`."""
    seen = rows.detach().float() @ projection(rows.shape[-1], rows.device)
    return seen.clamp(-60000, 60000).half()


def steps_of_change(rows: Tensor, now: Tensor, then: Tensor, tower: VisionTower) -> Tensor:
    """How far tokens are from their references, int32 `[streams, units]`, in steps (see `STEPS`).

    `rows` are the tokens, `[streams, tokens, dim]`, `now` and `then` the sketches of them and of the references. A unit
    is what is chosen as a whole: each of the leading pinned tokens of a tower with groups, then every group.
    """
    scale = torch.linalg.vector_norm(rows.detach().float(), dim=-1).mean(1, keepdim=True).clamp_min(1e-12)
    change = torch.linalg.vector_norm(now.float() - then.float(), dim=-1) / scale
    if tower.group > 1:
        groups = change[:, tower.pinned :].unflatten(1, (-1, tower.group)).mean(-1)
        change = torch.cat([change[:, : tower.pinned], groups], dim=1)
    return (change * STEPS + 0.5).clamp_max(2**30).int()


def wanted(steps: Tensor, tau: Tensor) -> Tensor:
    """Units whose change exceeds the threshold (`tau`, float32 `[streams]`), bool; one of zero never does."""
    return steps > (tau * STEPS + 0.5).int()[:, None]


def most_changed(steps: Tensor, tau: Tensor, count: int, tower: VisionTower) -> Tensor:
    """The `count` tokens that changed most of those that changed enough, bool `[streams, tokens]`.

    Of equal changes the first counts. Groups are chosen whole.
    """
    enough = wanted(steps, tau)
    best = steps.argsort(dim=1, descending=True, stable=True)[:, : count // tower.group]
    chosen = enough & torch.zeros_like(enough).scatter_(1, best, True)
    return tokens_of(chosen, tower)


def tokens_of(units: Tensor, tower: VisionTower) -> Tensor:
    """A mask of units, `[..., units]`, as one of tokens."""
    if tower.group == 1:
        return units
    groups = units[..., tower.pinned :].repeat_interleave(tower.group, dim=-1)
    return torch.cat([units[..., : tower.pinned], groups], dim=-1)
