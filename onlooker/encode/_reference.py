"""What STC-Cacher remembers of each stream, and how the memories of several streams become one batch."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from onlooker.core.state import StreamState


@dataclass
class CacherState(StreamState):
    """What one stream's reference left behind. Tensors are replaced, never written to, so forks share them."""

    age: int = 0
    """Frames since the last refresh, that one included."""
    gate: Tensor | None = None
    """What change is measured against, `[gates, tokens, dim]`: one per selective layer, or one for all."""
    values: Tensor | None = None
    """Attention values, `[selective layers, tokens, dim]`."""
    trail: Tensor | None = None
    """Hidden states before every layer from the first selective one on, and behind the last of them, `[layers + 1,
    tokens, dim]`: from one to the next a stale token moves as its reference did. Only of a fixed reference."""
    sums: Tensor | None = None
    """The same of a rolling reference, whose tokens date from different frames: attention branch plus MLP branch,
    `[selective layers, tokens, dim]`."""
    waits: Tensor | None = None
    """Frames since each token was computed, float32 `[gates, tokens]`; only with `age_weight`."""
    patches: Tensor | None = None
    """Patch embeddings of the last refresh, `[tokens, dim]`; only with `refresh_on_cut`."""
    grid: tuple[int, ...] = ()
    """Rows and columns of the reference's patches."""
    said: Tensor | None = None
    """What the video's encoder says of the newest frame, float32 `[patches, 4]` (see `hears_codec`)."""
    moved: Tensor | None = None
    """How far each patch moved since the reference, as it says, float32 `[patches]`; nan once it did not say."""
    bytes_a_picture: float | None = None
    """What the newest frame cost the encoder, by picture that was decoded; None where it does not say."""
    intra: bool = False
    """Whether a picture that was encoded without looking back was on the way to the newest frame."""
    quiet: float | None = None
    """Bytes of a picture when nothing happens."""
    picture: Tensor | None = None
    """Brightness of the newest frame in cells, float32 `[rows, cols]` (see `sees_pictures`)."""
    shown: Tensor | None = None
    """That of the frame before."""
    shift: Tensor | None = None
    """Where each patch was in the reference, minus where it is, in shares of the picture, and whether it is lost, 0 or
    1; float32 `[patches, 3]`; only with `motion`."""
    unsaid: bool = False
    """Whether the video's encoder said nothing of some frame since the reference; only with `motion`."""
    num_fallbacks: int = 0
    """Frames of which it said nothing, though it was asked."""

    def fork(self) -> Self:
        return copy.copy(self)


NEW = 0.1
"""Motion, as a share of the picture, that being new is worth."""


def follow(states: Sequence[CacherState], hidden: Tensor, pinned: int) -> Tensor:
    """How far every token moved since the reference by what the video's encoder said of each frame since, float32
    `[streams, tokens]`; nan where it did not always say, and the whole way for the `pinned` leading tokens."""
    rows = []
    for state in states:
        said, silent = state.said, hidden.new_full((hidden.shape[1] - pinned,), torch.nan, dtype=torch.float32)
        step = silent
        if said is not None and said.shape[0] == len(silent) and bool(said[:, 3].any()):
            step = said[:, :2].norm(dim=1) * said[:, 3] + said[:, 2] + NEW * (1 - said[:, 3])
        else:
            state.num_fallbacks += 1
        state.moved = step if state.moved is None else state.moved + step
        rows.append(state.moved)
    moved = torch.stack(rows)
    return torch.cat([moved.amax(1, keepdim=True).expand(-1, pinned), moved], dim=1)


@dataclass
class Reference:
    """New references of several streams, each field a list over layers of `[streams, tokens, dim]`."""

    gate: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    trail: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    """What each selective layer adds to a stale token."""
    waits: list[Tensor] = field(default_factory=list)


def kept_tensor(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a state was used before its first refresh"
    return tensor


class Layers(Sequence[Tensor]):
    """Layers of several streams, each `[streams, tokens, dim]` and made when it is asked for.

    All layers at once would be as much fresh memory as all references, which costs far more than the copying.
    """

    def __init__(self, count: int, of_each: Callable[[int], list[Tensor]]) -> None:
        """`of_each` gives one layer of every stream, `[tokens, dim]`."""
        self._count, self._of_each = count, of_each

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, layer: Any) -> Any:
        if not 0 <= layer < self._count:
            raise IndexError(layer)
        each = self._of_each(layer)
        return each[0][None] if len(each) == 1 else torch.stack(each)


class SideBySide(NamedTuple):
    """What is reused of the references of several streams; as in `Reference`."""

    gate: Sequence[Tensor]
    values: Sequence[Tensor]
    sums: Sequence[Tensor]
    waits: Sequence[Tensor]
    before: Sequence[Tensor]
    """Hidden states of a fixed reference before each selective layer; nothing of a rolling one."""
    behind: Sequence[Tensor]
    """The same behind each."""

    def moved(self, hidden: Tensor, layer: int) -> Tensor:
        """Where stale tokens are behind a selective layer: each moves as its reference did.

        With a fixed reference what a token differs by is taken apart first: then a token that is its reference's before
        the layer is so behind it too, to the bit, and never counts as changed because of rounding.
        """
        if len(self.before):
            return (hidden - self.before[layer]).add_(self.behind[layer])
        return hidden + self.sums[layer]


def side_by_side(states: Sequence[CacherState], layers: Sequence[int], place: Tensor | None = None) -> SideBySide:
    """The references of `states`, in which `layers` are the selective layers, ascending. `place` (int64 `[streams,
    tokens]`) says which token of its reference each one is, where they moved."""

    def layer_of(tensor: Tensor, layer: int, stream: int) -> Tensor:
        return tensor[layer] if place is None else tensor[layer].index_select(0, place[stream])

    def of(tensors: list[Tensor | None]) -> Layers:
        if tensors[0] is None:
            return Layers(0, lambda layer: [])
        kept = [kept_tensor(tensor) for tensor in tensors]
        return Layers(len(kept[0]), lambda layer: [layer_of(tensor, layer, n) for n, tensor in enumerate(kept)])

    sums, before, behind = of([s.sums for s in states]), of([None]), of([None])
    if states[0].trail is not None:
        trails, places = [kept_tensor(s.trail) for s in states], [n - layers[0] for n in layers]

        def trail(at: Callable[[int], int]) -> Layers:
            return Layers(len(layers), lambda layer: [layer_of(t, at(layer), n) for n, t in enumerate(trails)])

        before, behind = trail(lambda layer: places[layer]), trail(lambda layer: places[layer] + 1)
        sums = Layers(len(layers), lambda layer: list((behind[layer] - before[layer]).unbind()))
    gate, values, waits = ([getattr(s, name) for s in states] for name in ("gate", "values", "waits"))
    return SideBySide(of(gate), of(values), sums, of(waits), before, behind)


def remember(new: Reference, states: list[CacherState]) -> None:
    """Give every stream its part of `new`; what `new` has nothing of stays as it is."""
    for name in ("gate", "values", "trail", "sums", "waits"):
        if layers := getattr(new, name):
            # A gate only steers the choice, which has no gradient; keeping its graph would hold memory for nothing.
            layers = [layer.detach() for layer in layers] if name == "gate" else layers
            for place, state in enumerate(states):
                # Of its own: a view would keep the whole batch alive as long as one of its streams lives.
                setattr(state, name, torch.stack([layer[place] for layer in layers]))
