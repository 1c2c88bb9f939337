"""Centres of dense groups of tokens (DPC-kNN), for many streams at once.

Du et al., "Study on density peaks clustering based on k-nearest neighbors" (2016), in the form that token merging uses:
a token is dense when its `k` nearest are near, and a centre when no denser one is near. Of two equally dense tokens the
earlier one counts as denser; released codes add noise instead.
"""

import torch
from torch import Tensor

from onlooker.compress._batching import STEPS
from onlooker.compress._likeness import distances, inner
from onlooker.kernels import density
from onlooker.kernels.groups import Groups
from onlooker.kernels.ranks import kernels_on


def density_scores(
    features: Tensor, among: Tensor | None = None, k: int = 7, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """How much of a centre each token is, `[streams, tokens]`, in whole steps of a share of the greatest, and the
    distances `[streams, tokens, tokens]`.

    `features` is `[streams, tokens, dim]`. Tokens outside of `among` (bool `[streams, tokens]`) are far from all and
    score below 0; where it has several times as many rows, each part of it is a choice of its own of the same tokens.
    Distances are taken by inner products, or (`exact`) by differences, for what differs by a
    thousandth of its length.
    """
    near = distances(features) if exact else inner(features, features)
    if among is not None and len(among) > len(near):
        near = near.repeat(len(among) // len(near), 1, 1)
    root, kernels = features.shape[2] ** 0.5, kernels_on(features.device.type)
    return density.density_scores(near, not exact, root, among, k, STEPS, kernels)


def centres_of(scores: Tensor, distance: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are the `count` (`[streams]`) centres, bool `[streams, tokens]`, and the nearest centre of every
    token, int64 `[streams, tokens]` (a centre's is itself)."""
    return density.centres_of(scores, distance, count, kernels_on(scores.device.type))


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
