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
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept
from onlooker.core.errors import InputError
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
            if not -1 <= value <= 1:
                raise InputError("a threshold is a cosine", given=f"{name}={value}", do="give -1 to 1")

    def less(self) -> Self:
        """Lower thresholds: half way to everything."""
        return replace(self, space=self.space / 2, time=self.time / 2)

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The squares of all frames, joined over time."""
        x = tokens.features.detach().float().unflatten(0, (streams * frames, -1))
        count = x.shape[1]
        if tokens.grid[0] * tokens.grid[1] != count:  # thinned before: there are no squares
            return Kept(tokens)
        owner, value = self._squares(x, tokens.grid)
        itself = torch.arange(count, device=x.device)
        first = torch.arange(0, len(tokens), count, device=x.device)[:, None]
        alike = in_steps(likeness(value[1:], value[:-1])).long()
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

    def _squares(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The first token of the square that each one belongs to, int64 `[frames, tokens]`, and the square's mean at
        all of its tokens, `[frames, tokens, dim]`."""
        frames = len(x)
        owner = torch.arange(x.shape[1], device=x.device).expand(frames, -1)
        value = x
        means, labels = [x], [torch.arange(x.shape[1], device=x.device)]
        sides = [_sides(side, x.device) for side in grid]
        levels = max(len(one) for one in sides)
        for level in range(1, levels):
            (rows, _), (cols, across) = (one[min(level, len(one) - 1)] for one in sides)
            label = (rows[:, None] * across + cols).flatten()
            means.append(_mean(means[-1], labels[-1], label))
            labels.append(label)
        whole = torch.zeros(frames, x.shape[1], dtype=torch.bool, device=x.device)
        for level in range(levels - 1, 0, -1):
            label = labels[level]
            alike = in_steps(likeness(means[level - 1], means[level]))
            differs = (alike < round(self.space * STEPS)).float()
            any_apart = torch.zeros_like(differs).scatter_reduce(1, label.expand(frames, -1), differs, "amax")
            one = (any_apart[:, label] == 0) & ~whole
            place = torch.arange(len(label), device=x.device)
            first = torch.full_like(label, len(label)).scatter_reduce(0, label, place, "amin")[label]
            owner, value = torch.where(one, first, owner), torch.where(one[..., None], means[level], value)
            whole |= one
        return owner, value


def _sides(length: int, device: torch.device) -> list[tuple[Tensor, int]]:
    """Of the places along a side, the part that each is in and how many there are, level by level, up to `ROOTS`."""
    part, count = torch.arange(length, device=device), length
    levels = [(part, count)]
    while count > ROOTS:
        part, count = (part + count % 2) // 2, (count + 1) // 2
        levels.append((part, count))
    return levels


def _mean(parts: Tensor, part: Tensor, label: Tensor) -> Tensor:
    """The mean of a square's parts, each counted once, at all of its tokens, `[frames, tokens, dim]`."""
    # A part is there once for each of its tokens.
    share = 1 / torch.zeros_like(part).index_add_(0, part, torch.ones_like(part))[part].float()
    groups = torch.zeros(len(label), len(label), device=parts.device)
    groups[label, torch.arange(len(label), device=parts.device)] = share
    total = groups @ parts
    return (total / groups.sum(1)[:, None].clamp_min(1e-12))[:, label]
