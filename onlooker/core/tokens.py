"""Visual tokens that remember where and when they came from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """A flat list of visual tokens of one stream, in stream order.

    Every token carries its coordinates, so nothing downstream has to know which model it came from. The list shrinks
    in two ways only, `select` and `merge`, and both carry every array along.
    """

    features: Tensor
    """What enters the language model, `[tokens, dim]`."""
    frame: Tensor
    """Number of the frame in its stream, int64 `[tokens]`, ascending."""
    time_s: Tensor
    """Seconds since the stream began, float64 `[tokens]`."""
    row: Tensor
    """Row in the frame's token grid, int64 `[tokens]`."""
    col: Tensor
    """Column in the frame's token grid, int64 `[tokens]`."""
    grid: tuple[int, int]
    """Rows and columns of the frame's full token grid."""
    weight: Tensor
    """How many source tokens each token stands for, float32 `[tokens]`."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further arrays that travel with their tokens, each `[tokens, ...]` (DeepStack rows, saliency)."""

    @classmethod
    def of_frame(
        cls,
        features: Tensor,
        grid: tuple[int, int],
        frame: int,
        time_s: float,
        extras: Mapping[str, Tensor] | None = None,
    ) -> "VisualTokens":
        """All tokens of one frame in raster order; `features` is `[rows * cols, dim]`."""
        rows, cols = grid
        place = torch.arange(rows * cols, device=features.device)
        assert len(features) == rows * cols, f"{len(features)} tokens do not fill a grid of {rows} x {cols}"
        return cls(
            features=features,
            frame=torch.full_like(place, frame),
            time_s=torch.full((len(place),), time_s, dtype=torch.float64, device=features.device),
            row=place // cols,
            col=place % cols,
            grid=grid,
            weight=torch.ones(len(place), dtype=torch.float32, device=features.device),
            extras=dict(extras or {}),
        )

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def slot(self) -> Tensor:
        """Raster index of each token in its frame's full grid, int64 `[tokens]`."""
        return self.row * self.grid[1] + self.col

    def select(self, index: Tensor) -> "VisualTokens":
        """Keep the tokens at `index` (int64 `[kept]`, strictly ascending)."""
        return VisualTokens(
            features=self.features[index],
            frame=self.frame[index],
            time_s=self.time_s[index],
            row=self.row[index],
            col=self.col[index],
            grid=self.grid,
            weight=self.weight[index],
            extras={name: value[index] for name, value in self.extras.items()},
        )

    def merge(self, group: Tensor) -> "VisualTokens":
        """Average the tokens of each group, weighted by `weight`.

        `group` is int64 `[tokens]`, numbers 0..groups-1, each used. A merged token takes the coordinates of its
        group's first member, so that groups must be numbered in the order of their first members.
        """
        num_groups = int(group.max()) + 1 if len(group) else 0
        order = torch.arange(len(group), device=group.device)
        first = torch.full((num_groups,), len(group), device=group.device, dtype=torch.int64)
        first = first.scatter_reduce(0, group, order, "amin")
        kept = self.select(first)
        weight = torch.zeros(num_groups, device=group.device).index_add(0, group, self.weight)

        def mean(value: Tensor) -> Tensor:
            share = (self.weight / weight[group]).view(-1, *[1] * (value.ndim - 1))
            total = torch.zeros(num_groups, *value.shape[1:], device=value.device, dtype=torch.float32)
            return total.index_add(0, group, value.float() * share).to(value.dtype)

        extras = {name: mean(value) for name, value in self.extras.items()}
        return VisualTokens(mean(self.features), kept.frame, kept.time_s, kept.row, kept.col, self.grid, weight, extras)

    def frame_slices(self) -> list[slice]:
        """One slice per frame that has tokens, in stream order."""
        if not len(self):
            return []
        _, counts = torch.unique_consecutive(self.frame, return_counts=True)
        ends = counts.cumsum(0).tolist()
        return [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]


def join(parts: Iterable[VisualTokens]) -> VisualTokens:
    """Tokens of consecutive frames of one stream as one list. All parts share one grid and the same extras."""
    parts: Sequence[VisualTokens] = list(parts)
    names = parts[0].extras
    return VisualTokens(
        features=torch.cat([p.features for p in parts]),
        frame=torch.cat([p.frame for p in parts]),
        time_s=torch.cat([p.time_s for p in parts]),
        row=torch.cat([p.row for p in parts]),
        col=torch.cat([p.col for p in parts]),
        grid=parts[0].grid,
        weight=torch.cat([p.weight for p in parts]),
        extras={name: torch.cat([p.extras[name] for p in parts]) for name in names},
    )
