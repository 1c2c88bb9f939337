"""Squares of like tokens become one, and then what stays alike from frame to frame (STTM).

Hyun et al., "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration of Video LLMs", ICCV 2025
(arXiv 2507.07990). A frame is a pyramid of squares of two by two, up to four by four roots (an odd side keeps its first
row or column aside). A square that is like all of its parts (cosine from `space` on) is one token; another one is
looked at part by part. A token of a frame joins the one of the frame before whose square holds it, or lies in it, and
that is most like it (the upper left of equals), if their cosine is `time` at least; what is joined is one token, the
mean of all, where it was first. How many are left follows from the picture; `space` and `time` are tuned for a share.
Changed:

- it runs on the tokens that enter the language model, not inside it behind the third layer;
- the clip is a window of the stream;
- survivors keep their places (the authors number them anew, which `--layout pack` does here for every method).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from onlooker.compress._batching import STEPS, in_steps
from onlooker.compress._clip import SteppedWindows, merged_into
from onlooker.compress._likeness import inner
from onlooker.compress._steps import Kept
from onlooker.core import checks
from onlooker.core.tokens import VisualTokens

ROOTS = 4
"""Squares along a side at the top."""


@dataclass(frozen=True)
class STTM(SteppedWindows):
    """Quadtrees in space, unions in time."""

    space: float = 0.85
    """Cosine of a square and each of its parts from which on it is one token."""
    time: float = 0.6
    """Cosine of tokens of neighbouring frames from which on they are one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("space", self.space), ("time", self.time)):
            checks.number(name, value, least=-1, most=1, do="give a cosine")

    def less(self) -> Self:
        """Lower thresholds: half way to everything."""
        return replace(self, space=self.space / 2, time=self.time / 2)

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The squares of all frames, joined over time."""
        x = tokens.features.detach().unflatten(0, (streams * frames, -1))
        count = x.shape[1]
        if tokens.grid[0] * tokens.grid[1] != count:  # thinned before: there are no squares
            return Kept(tokens)
        owner, means, length = self._squares(inner(x, x), tokens.grid)
        itself = torch.arange(count, device=x.device)
        first = torch.arange(0, len(tokens), count, device=x.device)[:, None]
        across = _product(inner(x[1:], x[:-1]), means[1:], means[:-1])
        alike = in_steps(across / (length[1:] * length[:-1]).clamp_min(1e-16)).long()
        # Of all places of a square the one most like what was there before, the first of equals.
        key = torch.full_like(owner[1:], -(2**40)).scatter_reduce(1, owner[1:], alike * count - itself, "amax")
        place = (-key).remainder(count)
        best = torch.div(key + place, count, rounding_mode="floor")
        within = (first[1:] // count) % frames != 0  # a window has no frame before its first
        joins = (owner[1:] == itself) & (best >= round(self.time * STEPS)) & within
        later = torch.where(joins, owner[:-1].gather(1, place) + first[:-1], first[1:] + itself)
        root = torch.cat([itself[None], later]).flatten()
        for _ in range(frames.bit_length()):
            root = root[root]
        return merged_into(tokens, root[(owner + first).flatten()], streams)

    def _squares(self, inner: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The first token of the square that each one belongs to, int64 `[frames, tokens]`, the shares of all tokens in
        the square's mean, float32 `[frames, tokens, tokens]`, and its length. No mean is written out."""
        frames, count = inner.shape[:2]
        place = torch.arange(count, device=inner.device)
        owner, labels, means = place.expand(frames, -1), [place], [torch.eye(count, device=inner.device)]
        sides = [_sides(side, inner.device) for side in grid]
        for level in range(1, max(map(len, sides))):
            (rows, _), (cols, across) = (one[min(level, len(one) - 1)] for one in sides)
            labels.append((rows[:, None] * across + cols).flatten())
            means.append(_mean(means[-1], labels[-2], labels[-1]))
        lengths = [_product(inner, one, one).clamp_min(0).sqrt() for one in means]
        whole = torch.zeros(frames, count, dtype=torch.bool, device=inner.device)
        found, length = means[0].expand(frames, -1, -1), lengths[0]
        for level in range(len(means) - 1, 0, -1):
            label, both = labels[level], (lengths[level - 1] * lengths[level]).clamp_min(1e-16)
            alike = in_steps(_product(inner, means[level - 1], means[level]) / both)
            least = torch.full_like(alike, STEPS).scatter_reduce(1, label.expand(frames, -1), alike, "amin")
            one = (least[:, label] >= round(self.space * STEPS)) & ~whole
            first = torch.full_like(label, count).scatter_reduce(0, label, place, "amin")[label]
            owner, found = torch.where(one, first, owner), torch.where(one[..., None], means[level], found)
            length, whole = torch.where(one, lengths[level], length), whole | one
        return owner, found, length


def _product(inner: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The inner products of means, place by place, by the shares of the tokens in them, `[frames, tokens]`."""
    return (one @ inner * other).sum(-1)


def _sides(length: int, device: torch.device) -> list[tuple[Tensor, int]]:
    """Of the places along a side, the part that each is in and how many there are, level by level, up to `ROOTS`."""
    part, count = torch.arange(length, device=device), length
    levels = [(part, count)]
    while count > ROOTS:
        part, count = (part + count % 2) // 2, (count + 1) // 2
        levels.append((part, count))
    return levels


def _mean(shares: Tensor, part: Tensor, label: Tensor) -> Tensor:
    """The mean of a square's parts, each counted once, as shares of the tokens, at all of its tokens, `[tokens,
    tokens]`; `shares` are those of the parts."""
    # A part is there once for each of its tokens.
    times = (part[:, None] == part[None, :]).sum(1)
    groups = (label[:, None] == label[None, :]) / times
    return groups @ shares / groups.sum(1)[:, None]
