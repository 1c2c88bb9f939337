"""What memories that hold tokens share: small forms of frames, and their weighted means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread

NOTES_KEPT = 16
"""Notes that such a memory keeps, the newest."""


@dataclass
class HeldState(StreamState):
    """The newest frame and the newest notes of one stream; what else is kept is added by each memory."""

    replaces: ClassVar[bool] = True

    newest: Unread | None = None
    notes: list[Unread] = field(default_factory=list)

    def take(self, new: Unread) -> bool:
        """Keep what is new; True for a frame."""
        if new.kind == "vision":
            self.newest = new
            return True
        self.notes = [*self.notes, new][-NOTES_KEPT:]
        return False


def tokens_of(held: Unread) -> VisualTokens:
    """The visual tokens of what is no note."""
    assert isinstance(held.content, VisualTokens), "a note has no visual tokens"
    return held.content


def in_order(held: Sequence[Unread]) -> list[Unread]:
    """By time; what is told of the same moment stays as it is given."""
    return sorted(held, key=lambda one: one.at_s)


def pooled(tokens: VisualTokens, grid: tuple[int, int]) -> VisualTokens:
    """A frame as a grid of so many rows and columns, each cell the weighted mean of the tokens that lie in it; a cell
    in which none were kept is the mean of all. Features in float32."""
    cell = (tokens.row * grid[0] // tokens.grid[0]) * grid[1] + tokens.col * grid[1] // tokens.grid[1]
    count = grid[0] * grid[1]
    shares = torch.zeros(count, len(tokens), device=cell.device)
    shares[cell, torch.arange(len(tokens), device=cell.device)] = tokens.weight
    shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, tokens.weight)
    shares = shares / shares.sum(1, keepdim=True)

    def mean(value: Tensor) -> Tensor:
        return (shares @ value.float().reshape(len(value), -1)).reshape(count, *value.shape[1:])

    place = torch.arange(count, device=cell.device)
    return VisualTokens(
        features=mean(tokens.features),
        frame=tokens.frame[:1].expand(count),
        time_s=tokens.time_s[:1].expand(count),
        row=place // grid[1],
        col=place % grid[1],
        grid=grid,
        weight=tokens.weight.sum().expand(count) / count,
        extras={name: mean(value) for name, value in tokens.extras.items() if value.is_floating_point()},
    )


def mixed(parts: Sequence[VisualTokens], weights: Sequence[float]) -> VisualTokens:
    """The weighted mean of frames of one grid, at the coordinates of the first."""
    shares = torch.tensor(weights, device=parts[0].features.device) / sum(weights)

    def mean(values: list[Tensor]) -> Tensor:
        return torch.tensordot(shares, torch.stack(values), dims=1)

    extras = {name: mean([part.extras[name] for part in parts]) for name in parts[0].extras}
    weight = torch.stack([part.weight for part in parts]).sum(0)
    return replace(parts[0], features=mean([part.features for part in parts]), extras=extras, weight=weight)


def as_given(held: Unread, like: VisualTokens) -> Unread:
    """What was averaged in float32, in the formats of the stream's tokens."""
    tokens = tokens_of(held)
    extras = {name: value.to(like.extras[name].dtype) for name, value in tokens.extras.items() if name in like.extras}
    return replace(held, content=replace(tokens, features=tokens.features.to(like.features.dtype), extras=extras))


def joined(parts: Sequence[Unread], weights: Sequence[float]) -> Unread:
    """One block that stands for several of one grid, told at their mean time; the block itself if it is one."""
    if len(parts) == 1:
        return parts[0]
    place_s = sum(one.at_s * weight for one, weight in zip(parts, weights, strict=True)) / sum(weights)
    start_s, end_s = min(one.start_s for one in parts), max(one.end_s for one in parts)
    content = mixed([tokens_of(one) for one in parts], weights)
    return Unread(content, start_s, end_s, place_s=min(max(place_s, start_s), end_s))


def nearest(held: Sequence[Unread], small: Callable[[VisualTokens], VisualTokens], centre: Tensor) -> Unread:
    """Of some frames the one whose small form lies nearest to features `[cells, dim]`; of equals (as two
    frames are to their mean) the first."""
    if len(held) == 1:
        return held[0]
    gaps = torch.stack([(small(tokens_of(one)).features - centre).square().sum() for one in held])
    return held[int((gaps <= gaps.min() * 1.0001).int().argmax())]


def k_means(points: Tensor, weights: Tensor) -> list[int]:
    """The cluster of each of `points` (`[points, dim]`, weights `[points]`), one fewer than there are points."""
    growth = weights[:, None] * weights / (weights[:, None] + weights) * torch.cdist(points, points).square()
    growth.fill_diagonal_(float("inf"))
    one, two = divmod(int(growth.argmin()), len(points))
    keep = [n for n in range(len(points)) if n != max(one, two)]
    start = points.clone()
    start[min(one, two)] = (weights[[one, two]] @ points[[one, two]]) / weights[[one, two]].sum()
    centres, groups = start[keep], torch.zeros(len(points), dtype=torch.int64)
    for _ in range(10):
        groups = torch.cdist(points, centres).argmin(1)
        shares = torch.nn.functional.one_hot(groups, len(centres)).T * weights
        moved = torch.where(
            (total := shares.sum(1, keepdim=True)) > 0, shares @ points / total.clamp(min=1e-12), centres
        )
        done = (moved - centres).norm(dim=1).max() < 1e-4
        centres = moved
        if done:
            break
    return groups.tolist()


def likeness(one: VisualTokens, other: VisualTokens) -> float:
    """Cosine of the mean tokens of two frames."""
    return float(torch.cosine_similarity(one.features.float().mean(0), other.features.float().mean(0), dim=0))


def tome(tokens: VisualTokens, count: int) -> VisualTokens:
    """So many tokens, of more: in rounds, every second token that is most like one of the others is merged into it
    (ToMe: bipartite, by cosine, at most half of the tokens in a round)."""
    while len(tokens) > max(count, 1):
        features = normalize(tokens.features.float(), dim=-1)
        best = (features[0::2] @ features[1::2].T).max(dim=1)
        most = min(len(tokens) - max(count, 1), len(best.values))
        chosen = best.values.sort(descending=True, stable=True).indices[:most]
        place = torch.arange(len(tokens), device=features.device)
        owner = place.clone()
        owner[2 * chosen] = 2 * best.indices[chosen] + 1
        first = place.new_full((len(tokens),), len(tokens)).scatter_reduce(0, owner, place, "amin")[owner]
        tokens = tokens.merge(first.unique(return_inverse=True)[1])
    return tokens
