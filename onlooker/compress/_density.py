"""Centres of dense groups of tokens (DPC-kNN), for many streams at once.

Du et al., "Study on density peaks clustering based on k-nearest neighbors" (2016), in the form that token merging uses:
a token is dense when its `k` nearest are near, and a centre when no denser one is near. Of two equally dense tokens the
earlier one counts as denser; released codes add noise instead.
"""

import torch
from torch import Tensor

from onlooker.compress._batching import STEPS, among_best, in_steps
from onlooker.compress._groups import Groups
from onlooker.compress._likeness import distances


def density_scores(features: Tensor, among: Tensor | None = None, k: int = 7) -> tuple[Tensor, Tensor]:
    """How much of a centre each token is, `[streams, tokens]`, in whole steps of a share of the greatest, and the
    distances `[streams, tokens, tokens]`.

    `features` is `[streams, tokens, dim]`. Tokens outside of `among` (bool `[streams, tokens]`) are far from
    all and score below 0.
    """
    count, dim = features.shape[1:]
    distance = distances(features) / dim**0.5
    if among is not None:
        apart = ~(among[:, :, None] & among[:, None, :])
        distance = distance.masked_fill(apart, torch.inf)
    near = distance.topk(min(k, count), dim=-1, largest=False).values.square()
    there = near.isfinite()
    density = torch.exp(-near.masked_fill(~there, 0).sum(-1) / there.sum(-1).clamp_min(1))
    density = in_steps(density)
    place = torch.arange(count, device=features.device)
    denser = (density[:, None, :] > density[:, :, None]) | (
        (density[:, None, :] == density[:, :, None]) & (place[None, :] < place[:, None])
    )
    finite = distance.masked_fill(~distance.isfinite(), 0)
    farthest = finite.amax((1, 2), keepdim=True)[:, :, 0]
    apart_by = distance.masked_fill(~denser, torch.inf).amin(-1)
    apart_by = torch.where(apart_by.isfinite(), apart_by, finite.amax(-1))
    score = in_steps((density / STEPS) * apart_by / farthest.clamp_min(1e-12))
    return (score if among is None else score.masked_fill(~among, -1)), distance


def centres_of(scores: Tensor, distance: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are the `count` (`[streams]`) centres, bool `[streams, tokens]`, and the nearest centre of every
    token, int64 `[streams, tokens]` (a centre's is itself)."""
    centre = among_best(scores, count) & (scores >= 0)
    nearest = distance.masked_fill(~centre[:, None, :], torch.inf).argmin(-1)
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(nearest)
    return centre, torch.where(centre, place, nearest)


def mean_of_members(values: Tensor, owner: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the `member` tokens (bool `[streams, tokens]`) of each `owner` (int64 `[streams, tokens]`), by
    owner, float32 `[streams, tokens, ...]`, 0 where there are none; and how many there are, float32."""
    streams, count = owner.shape
    first = torch.arange(0, streams * count, count, device=owner.device)[:, None]
    groups = Groups.of(owner + first, member)
    number = groups.length.float()
    total = groups.sums(values.flatten(0, 1))
    mean = total / number.clamp_min(1).view(-1, *[1] * (total.ndim - 1))
    return mean.view(values.shape), number.view(owner.shape)
