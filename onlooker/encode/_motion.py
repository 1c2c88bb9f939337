"""Where in its reference each token of a frame is found again: what the video's encoder says, or a search for it.

Motion is followed from frame to frame since the reference, in shares of the picture. A token's place in the reference
is the patch nearest to where it came from; what came from outside, or from nowhere, stays at its own place and is lost.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from onlooker.core.contracts import CELLS, VisionTower
from onlooker.encode._reference import NEW, CacherState

REACH = 6
"""Cells by which anything may move from one frame to the next: one and a half patches."""
AROUND = 2
"""Cells around a patch that are compared with it: a patch of one colour alone would match anywhere."""
FARTHER = 0.05
"""Grey levels by which a match must be better for each cell that it is farther away."""
BETTER = 0.7
"""Share of the difference at its own place that a patch may have elsewhere, for it to have moved: noise finds something
slightly better everywhere."""

FORGET = 1.05
"""How fast the usual size of a quiet picture may grow, from one frame to the next."""


def searched(now: Tensor, before: Tensor) -> Tensor:
    """Where every patch of a picture was in the one before, minus where it is, in cells: float32 `[streams, patches,
    2]` in raster order. Both are `[streams, rows * CELLS, cols * CELLS]`."""
    height, width = now.shape[1:]
    shifted = pad(before[:, None], (REACH,) * 4, mode="replicate")[:, 0].unfold(1, height, 1).unfold(2, width, 1)
    apart = (now[:, None, None] - shifted).abs().flatten(1, 2)
    cost = avg_pool2d(apart, CELLS + 2 * AROUND, CELLS, AROUND, count_include_pad=False).flatten(2)
    side = 2 * REACH + 1
    way = torch.arange(side * side, device=now.device)
    way = torch.stack([way // side - REACH, way % side - REACH], dim=1).float()
    least, at = (cost + FARTHER * way.norm(dim=1)[None, :, None]).min(1)
    return way[at] * (least < BETTER * cost[:, len(way) // 2])[..., None]


def costly(state: CacherState, burst: float) -> bool:
    """Whether the newest frame began anew, or cost the video's encoder `burst` times the bytes of a quiet picture;
    False where it does not say. Keeps count of what a quiet one costs."""
    each = state.bytes_a_picture
    if each is None:
        return False
    if state.intra:  # says nothing of what a quiet picture costs
        return True
    state.quiet = min(each, state.quiet * FORGET) if state.quiet else each
    return each > burst * max(1.0, state.quiet)


class Found(NamedTuple):
    """The tokens of a frame in their references."""

    place: Tensor
    """The token of the reference that each one is, int64 `[streams, tokens]`."""
    residue: Tensor
    """What motion by whole patches leaves over, in shares of the picture, float32 `[streams, tokens]`; nan of streams
    of which the encoder did not always say something."""


def find(states: Sequence[CacherState], tower: VisionTower, device: torch.device, by_codec: bool) -> Found:
    """Follow the newest frame of each stream: by what the encoder said (`by_codec`; where it is silent, which is
    counted, by search), or by search. Updates `shift` and `lost` of the states."""
    order = torch.arange(tower.num_tokens - tower.pinned, device=device) if tower.raster is None else tower.raster
    if tower.grid[0] * tower.grid[1] != len(order):
        return _nowhere(states, tower, device)
    size = torch.tensor(tower.grid, dtype=torch.float32, device=device)
    own = torch.stack([order // tower.grid[1], order % tower.grid[1]], dim=1).float()
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))

    def nearest(where: Tensor) -> tuple[Tensor, Tensor]:
        """The patch at a place (`[streams, patches, 2]`, in patches), and whether that is outside of the picture."""
        at = where.round()
        inside = at.clamp_min(0).minimum(size - 1)
        return inverse[(inside[..., 0] * tower.grid[1] + inside[..., 1]).long()], (at != inside).any(-1)

    steps = [_step(state, order, by_codec) for state in states]
    motion, new = torch.stack([step[:, :2] for step in steps]), torch.stack([step[:, 2] for step in steps])
    blank = motion.new_zeros(len(order), 3)
    since = torch.stack([blank if state.shift is None else state.shift for state in states])
    came_from, outside = nearest(own + motion * size)
    since = since.gather(1, came_from[..., None].expand(-1, -1, 3))
    shift, lost = since[..., :2] + motion, torch.maximum(since[..., 2], torch.maximum(new, outside.float()))
    place, outside = nearest(own + shift * size)
    lost = torch.maximum(lost, outside.float())
    itself = torch.arange(len(order), device=device).expand_as(place)
    place = torch.where(lost >= 0.5, itself, place)
    for state, row in zip(states, torch.cat([shift, lost[..., None]], dim=2), strict=True):
        state.shift = row.clone()
    left = (shift - (own[place] - own) / size).norm(dim=2) + NEW * lost
    unsaid = torch.tensor([state.unsaid for state in states]).to(device)
    left = left.masked_fill(unsaid[:, None], torch.nan)
    leading = torch.arange(tower.pinned, device=device).expand(len(place), -1)
    pinned = left.amax(1, keepdim=True).expand(-1, tower.pinned)
    return Found(torch.cat([leading, place + tower.pinned], dim=1), torch.cat([pinned, left], dim=1))


def _nowhere(states: Sequence[CacherState], tower: VisionTower, device: torch.device) -> Found:
    """For towers that do not say where their tokens lie in the picture: all stay where they are, which is counted."""
    for state in states:
        state.unsaid = True
        state.num_fallbacks += 1
    place = torch.arange(tower.num_tokens, device=device).expand(len(states), -1)
    return Found(place, torch.full(place.shape, torch.nan, device=device))


def _step(state: CacherState, order: Tensor, by_codec: bool) -> Tensor:
    """Motion since the frame before, and the share that is new, float32 `[patches, 3]` in the tower's order."""
    said = state.said
    if said is None or len(said) != len(order) or not bool(said[:, 3].any()):
        state.unsaid = True
        state.num_fallbacks += by_codec
    elif by_codec:
        return torch.cat([said[:, :2] * said[:, 3:], 1 - said[:, 3:]], dim=1)
    now, before = state.picture, state.shown
    if now is None or before is None or now.shape != before.shape:
        return torch.zeros(len(order), 3, device=order.device)
    size = torch.tensor(now.shape, dtype=torch.float32, device=order.device)
    motion = searched(now[None], before[None])[0][order] / size
    return torch.cat([motion, torch.zeros_like(motion[:, :1])], dim=1)
