"""Visual tokens that remember where and when they came from."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Arrays that describe whole frames, each `[frames, ...]`: a row for each frame that was joined, in order, whether
    any of its tokens are left or not."""

    def __post_init__(self) -> None:
        # Thousands are made a second: sizes are asked for without making shapes of them.
        count = self.features.size(0)
        fits = count == self.frame.size(0) == self.time_s.size(0) == self.row.size(0) == self.col.size(0)
        if not fits or count != self.weight.size(0) or any(one.size(0) != count for one in self.extras.values()):
            columns = {name: getattr(self, name) for name in ("frame", "time_s", "row", "col", "weight")}
            wrong = {name: len(one) for name, one in (columns | dict(self.extras)).items() if len(one) != count}
            raise AssertionError(f"{count} tokens, but {wrong}")

    @classmethod
    def of_frame(
        cls,
        features: Tensor,
        grid: tuple[int, int],
        frame: int,
        time_s: float,
        extras: Mapping[str, Tensor] | None = None,
        whole: Mapping[str, Tensor] | None = None,
    ) -> "VisualTokens":
        """All tokens of one frame in raster order; `features` is `[rows * cols, dim]`, what is in `whole` is
        `[1, ...]`."""
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
            whole=dict(whole or {}),
        )

    @classmethod
    def of_frames(
        cls,
        features: Tensor,
        grid: tuple[int, int],
        frames: Sequence[int],
        times_s: Sequence[float],
        extras: Sequence[Mapping[str, Tensor]],
        whole: Sequence[Mapping[str, Tensor]],
    ) -> list["VisualTokens"]:
        """As `of_frame`, a frame of each of several streams, `[streams, rows * cols, dim]`: what is the same for all
        lies once, and numbers and times are brought to the device together, without waiting for it."""
        rows, cols = grid
        streams, count = features.shape[:2]
        assert count == rows * cols, f"{count} tokens do not fill a grid of {rows} x {cols}"
        place = torch.arange(count, device=features.device)
        row, col, weight = place // cols, place % cols, torch.ones(count, dtype=torch.float32, device=place.device)
        facts = torch.empty(2, streams, dtype=torch.int64, pin_memory=features.is_cuda)
        facts[0] = torch.tensor(list(frames), dtype=torch.int64)
        facts[1].view(torch.float64)[:] = torch.tensor(list(times_s), dtype=torch.float64)
        numbers, bits = facts.to(features.device, non_blocking=True)[:, :, None].expand(-1, -1, count).unbind(0)
        parts = zip(features.unbind(0), numbers.unbind(0), bits.unbind(0), extras, whole, strict=True)
        return [
            cls(one, number, bit.view(torch.float64), row, col, grid, weight, dict(more), dict(about))
            for one, number, bit, more, about in parts
        ]

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the features, of the extras and of what describes whole frames."""
        return self.features.nbytes + sum(value.nbytes for value in (*self.extras.values(), *self.whole.values()))

    @property
    def slot(self) -> Tensor:
        """Raster index of each token in its frame's full grid, int64 `[tokens]`."""
        return self.row * self.grid[1] + self.col

    def with_rows(self, features: Tensor, blank: Collection[str] = ()) -> "VisualTokens":
        """One whole frame with whole rows of further tokens under it, `[rows * cols, dim]`. Their extras are those of
        the frame on average; of flags and numbers, and of what is named in `blank`, zeros."""
        rows, cols = self.grid
        count, left = divmod(len(features), cols)
        assert not left and len(self) == rows * cols, f"{len(features)} tokens are no whole rows of {cols}"

        def filled(name: str, value: Tensor) -> Tensor:
            like = value.new_zeros(1, *value.shape[1:])
            if value.is_floating_point() and name not in blank:
                like = value.mean(0, keepdim=True)
            return torch.cat([value, like.expand(len(features), *value.shape[1:])])

        longer = VisualTokens.of_frame(
            torch.cat([self.features, features.to(self.features.dtype)]), (rows + count, cols), 0, 0.0, whole=self.whole
        )
        return replace(
            longer,
            frame=self.frame[:1].expand(len(longer)).clone(),
            time_s=self.time_s[:1].expand(len(longer)).clone(),
            extras={name: filled(name, value) for name, value in self.extras.items()},
        )

    def owned(self) -> "VisualTokens":
        """The same tokens, in memory of their own."""
        parts = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        extras, whole = ({k: v.detach().clone() for k, v in some.items()} for some in (self.extras, self.whole))
        return replace(self, **{k: v.detach().clone() for k, v in parts.items()}, extras=extras, whole=whole)

    def select(self, index: Tensor) -> "VisualTokens":
        """Keep the tokens at `index` (int64 `[kept]`, strictly ascending, where the tokens are)."""
        return VisualTokens(
            features=self.features.index_select(0, index),
            frame=self.frame.index_select(0, index),
            time_s=self.time_s.index_select(0, index),
            row=self.row.index_select(0, index),
            col=self.col.index_select(0, index),
            grid=self.grid,
            weight=self.weight.index_select(0, index),
            extras={name: value.index_select(0, index) for name, value in self.extras.items()},
            whole=self.whole,
        )

    def merge(self, group: Tensor, num_groups: int | None = None) -> "VisualTokens":
        """Average the tokens of each group, weighted by `weight`.

        `group` is int64 `[tokens]`, numbers 0..groups-1, each used. A merged token takes the coordinates of its
        group's first member, so that groups must be numbered in the order of their first members. Extras that are not
        floating point (flags, numbers of things) have no average and are taken from the first member too. Waits for the
        device unless `num_groups` is given.
        """
        if num_groups is None:
            num_groups = int(group.max()) + 1 if len(group) else 0
        if not num_groups:
            return self
        # Sorted segments and not index_add, whose order of summation changes from run to run on a GPU.
        order = group.argsort(stable=True)
        counts = torch.zeros(num_groups, dtype=torch.int64, device=group.device)
        counts = counts.index_add(0, group, torch.ones_like(group))
        kept = self.select(order[counts.cumsum(0) - counts])

        def total(value: Tensor) -> Tensor:
            return torch.segment_reduce(value[order].contiguous(), "sum", lengths=counts, unsafe=True)

        weight = total(self.weight)
        share = self.weight / weight[group]

        def mean(value: Tensor) -> Tensor:
            return total(value.float() * share.view(-1, *[1] * (value.ndim - 1))).to(value.dtype)

        extras = {name: mean(v) if v.is_floating_point() else kept.extras[name] for name, v in self.extras.items()}
        features = mean(self.features)
        return VisualTokens(
            features, kept.frame, kept.time_s, kept.row, kept.col, self.grid, weight, extras, self.whole
        )

    def by_frame(self) -> list[tuple[int, "VisualTokens"]]:
        """The number of each frame that has tokens, and its tokens, in stream order, without `whole`. Waits for the
        device."""
        slices = self.frame_slices()
        if not slices:
            return []
        numbers = self.frame[[part.start for part in slices]].tolist()
        place = torch.arange(len(self), device=self.features.device)
        alone = replace(self, whole={})
        return [(number, alone.select(place[part])) for number, part in zip(numbers, slices, strict=True)]

    def frame_slices(self) -> list[slice]:
        """One slice per frame that has tokens, in stream order."""
        if not len(self):
            return []
        _, counts = torch.unique_consecutive(self.frame, return_counts=True)
        ends = counts.cumsum(0).tolist()
        return [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]


def join(parts: Iterable[VisualTokens]) -> VisualTokens:
    """Tokens of consecutive frames of one stream as one list. All parts share one grid and the same extras."""
    parts = list(parts)
    assert parts, "nothing to join"
    names = parts[0].extras
    for part in parts:
        assert part.grid == parts[0].grid, f"grids {part.grid} and {parts[0].grid} cannot be joined"
        assert part.extras.keys() == names.keys(), f"extras {list(part.extras)} and {list(names)} cannot be joined"
        assert part.whole.keys() == parts[0].whole.keys(), "what describes whole frames cannot be joined"
    return VisualTokens(
        features=torch.cat([p.features for p in parts]),
        frame=torch.cat([p.frame for p in parts]),
        time_s=torch.cat([p.time_s for p in parts]),
        row=torch.cat([p.row for p in parts]),
        col=torch.cat([p.col for p in parts]),
        grid=parts[0].grid,
        weight=torch.cat([p.weight for p in parts]),
        extras={name: torch.cat([p.extras[name] for p in parts]) for name in names},
        whole={name: torch.cat([p.whole[name] for p in parts]) for name in parts[0].whole},
    )
