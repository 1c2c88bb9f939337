"""Dense tokens and the centres among them (DPC-kNN): four launches over distances instead of forty.

`compress._density` says where the method comes from.
"""

from types import ModuleType

import torch
from torch import Tensor

from onlooker.kernels.ranks import among_best
from onlooker.kernels.rows import power_of_two

SAME = 1e-6
"""Square of a distance, as a share of the squares of both lengths, below which two tokens are the same: what is left
of a difference of products may be rounding."""
MOST_TOKENS = 1024
"""Tokens of a frame of which one program holds eight rows of distances in registers."""


def by_products(products: Tensor) -> Tensor:
    """Distances by inner products, float32 `[streams, tokens, tokens]` both; 0 where they are too near to tell."""
    square = products.diagonal(dim1=1, dim2=2)
    both = square[:, :, None] + square[:, None, :]
    apart = both - 2 * products
    return apart.masked_fill_(apart <= SAME * both, 0).sqrt_()


def density_scores(
    near: Tensor, products: bool, root: float, among: Tensor | None, k: int, steps: int, kernels: ModuleType | None
) -> tuple[Tensor, Tensor]:
    """How much of a centre each token is, in whole steps (`steps` in 1) of a share of the greatest, float32 `[streams,
    tokens]`, and the distances, by `root`, `[streams, tokens, tokens]`.

    `near` are distances or inner `products`, float32 `[streams, tokens, tokens]`. Tokens outside of `among` (bool
    `[streams, tokens]`) are far from all and score below 0. A token is dense when its `k` nearest are near; of two
    equally dense ones the earlier counts as denser.
    """
    streams, count = near.shape[:2]
    if kernels is None or not 0 < count <= MOST_TOKENS or not streams:
        return _plain_scores((by_products(near) if products else near) / root, among, k, steps)
    near = near.contiguous()
    distance, score = torch.empty_like(near), near.new_empty(streams, count)
    density, farthest = torch.empty_like(score), torch.empty_like(score)
    some, rows, block = score if among is None else among.contiguous(), _rows(count), power_of_two(count)
    shape = {"AMONG": among is not None, "ROWS": rows, "BLOCK": block, "num_warps": 4}
    grid = (streams, -(-count // rows))
    kernels.dense[grid](
        near, some, distance, density, farthest, root, SAME, steps, count, min(k, count), PRODUCTS=products, **shape
    )
    kernels.scored[grid](distance, density, farthest, some, score, steps, count, **shape)
    return score, distance


def centres_of(scores: Tensor, distance: Tensor, count: Tensor, kernels: ModuleType | None) -> tuple[Tensor, Tensor]:
    """Which tokens are the `count` (`[streams]`) centres, bool `[streams, tokens]`, and the nearest centre of every
    token, int64 `[streams, tokens]` (a centre's is itself)."""
    best = among_best(scores, count, kernels)
    streams, tokens = scores.shape
    if kernels is None or not 0 < tokens <= MOST_TOKENS or not streams:
        centre = best & (scores >= 0)
        nearest = distance.masked_fill(~centre[:, None, :], torch.inf).argmin(-1)
        place = torch.arange(tokens, device=scores.device).expand_as(nearest)
        return centre, torch.where(centre, place, nearest)
    centre, owner, rows = torch.empty_like(best), torch.empty_like(scores, dtype=torch.int64), _rows(tokens)
    kernels.nearest[(streams, -(-tokens // rows))](
        distance, scores, best, centre, owner, tokens, ROWS=rows, BLOCK=power_of_two(tokens), num_warps=4
    )
    return centre, owner


def _rows(tokens: int) -> int:
    """Rows of distances of one program: eight thousand numbers at most."""
    return max(4, min(16, 4096 // power_of_two(tokens)))


def _plain_scores(distance: Tensor, among: Tensor | None, k: int, steps: int) -> tuple[Tensor, Tensor]:
    count = distance.shape[1]
    if among is not None:
        distance = distance.masked_fill(~(among[:, :, None] & among[:, None, :]), torch.inf)
    near = distance.topk(min(k, count), dim=-1, largest=False).values.square()
    there = near.isfinite()
    density = torch.exp(-near.masked_fill(~there, 0).sum(-1) / there.sum(-1).clamp_min(1))
    density = torch.round(density * steps)
    place = torch.arange(count, device=distance.device)
    denser = (density[:, None, :] > density[:, :, None]) | (
        (density[:, None, :] == density[:, :, None]) & (place[None, :] < place[:, None])
    )
    finite = distance.masked_fill(~distance.isfinite(), 0)
    farthest = finite.amax((1, 2), keepdim=True)[:, :, 0]
    apart_by = distance.masked_fill(~denser, torch.inf).amin(-1)
    apart_by = torch.where(apart_by.isfinite(), apart_by, finite.amax(-1))
    score = torch.round((density / steps) * apart_by / farthest.clamp_min(1e-12) * steps)
    return (score if among is None else score.masked_fill(~among, -1)), distance
