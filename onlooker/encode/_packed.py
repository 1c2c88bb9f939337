"""One step of a vision tower for many streams at once: those that refresh and those that do not, in one list of rows.

Every product of a layer runs over the rows of all streams together: all tokens of the streams whose frame is computed
whole, then only the chosen tokens of the others. A dense tower is the step in which all streams are whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import VisionTower
from onlooker.core.contracts.packed import Norm, PackedLayer
from onlooker.core.errors import ModelError
from onlooker.kernels.deviation import add_branch, advance, enter, everywhere
from onlooker.kernels.head_attention import IN_PLACE, attend_in_place
from onlooker.kernels.rotary import compare_keys, turn_rows
from onlooker.kernels.rows import (
    Kernels,
    Stored,
    ValueRows,
    gather_rows,
    keep_rows,
    residual_norm,
    vision_kernels,
)
from onlooker.kernels.selection import Chosen, cosine


@dataclass(frozen=True)
class StepPlan:
    """What a packed step does with its streams."""

    count: int = 0
    """Tokens computed of a stream that does not refresh; 0: there are no such streams, and nothing is remembered."""
    selection: Literal["per_layer", "shared", "patch"] = "per_layer"
    """Who chooses them: see `STCPublished.selection`."""
    group: int = 1
    """Neighbours that are chosen together: see `VisionTower.group`."""


@dataclass(frozen=True)
class Ways:
    """How a packed step is computed; the results are the same within rounding."""

    rows: Kernels = None
    """Triton kernels for rows, norms, references and the choice of tokens; None: plain PyTorch."""
    whole_attention: str = "torch"
    """Attention of whole frames: one of `head_attention.WAYS`."""
    some_attention: str = "torch"
    """Attention of chosen tokens; also one of `head_attention.IN_PLACE`."""
    few: int = 0
    """Up to so many streams, values are put side by side even for ways that could read them in place: they leave most
    of the device idle, which is then better spent on this than on waiting for addresses."""
    compiled: str | Callable[..., Any] | None = None
    """Backend of `torch.compile` ("inductor") through which every layer runs, all layers sharing the code; None: not
    compiled. For plain PyTorch only."""


LARGE = 2048
"""Tokens of a frame from which on the library's attention pays for putting values side by side."""


def fastest_ways(like: Tensor) -> Ways:
    """The way that was measured to be fastest on this device: kernels on CUDA, plain PyTorch elsewhere."""
    if not like.is_cuda:
        return Ways()
    if like.shape[-1] * like.element_size() % 16:
        raise ModelError(
            "the vision kernels read rows by 16 bytes", given=f"rows of {like.shape[-1]}", do="use no graphs"
        )
    half = like.element_size() == 2  # all that cuDNN's attention takes
    whole = "cudnn" if half else "torch"
    return Ways(vision_kernels(), whole, whole if len(like) >= LARGE else "in_place", few=2)


def packed_layers(tower: VisionTower) -> Sequence[PackedLayer]:
    """The tower's layers in packed form. Raises `ModelError` when it has none."""
    if tower.pack is None:
        raise ModelError("this model's vision tower has no packed form", do="run the encoder without graphs")
    return tower.pack()


class References(NamedTuple):
    """What the streams of a step have stored, or are about to store: see `CacherState`."""

    gate: Stored
    values: Stored
    trail: Stored

    def part(self, first: int, last: int) -> "References":
        """Streams `first` to `last`."""
        return References(*(stored.part(first, last) for stored in self))

    def at(self, layer: int) -> tuple["References", int]:
        """One layer: a view, so that compiled code need not know its number; or all and the number, for addresses."""
        gate, values, trail = (stored.stack for stored in self)
        if gate is None or values is None or trail is None:
            return self, layer
        number = min(layer, gate.shape[1] - 1)
        cut = (gate[:, number : number + 1], values[:, layer : layer + 1], trail[:, layer : layer + 2])
        return References(*map(Stored, cut)), 0


@dataclass
class PackedTower:
    """A tower's packed layers and one way to run them."""

    layers: Sequence[PackedLayer]
    plan: StepPlan
    ways: Ways = field(default_factory=Ways)
    taps: tuple[int, ...] = ()
    """Layers whose output is wanted too, ascending: see `VisionTower.tap_layers`."""

    @property
    def kept(self) -> tuple[int, int, int]:
        """How many `[tokens, dim]` a stream keeps of each kind in `References`."""
        layers = len(self.layers)
        return layers if self.plan.selection == "per_layer" else 1, layers, layers + 1

    def chosen(self, hidden: Tensor, whole: int) -> Chosen:
        """Room for the choice of a step of this shape; a step that runs often keeps it."""
        return Chosen(whole, len(hidden) - whole, hidden.shape[1], self.plan.count, hidden.device, self.plan.group)

    def run(self, hidden: Tensor, chosen: Chosen, old: References | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """All layers. The first streams of `hidden` (`[streams, tokens, dim]`), as many as `chosen` says, are computed
        whole and stored, the others reuse what is stored. Returns the output; float32 `[others, tokens]`, how
        often each token of the others was computed; and the output of every tapped layer."""
        streams, whole, rows = len(hidden), chosen.whole, self.ways.rows
        chosen.times.zero_()
        patch = self.plan.selection == "patch"
        if old is not None and patch:
            if whole:
                keep_rows([hidden[:whole].flatten(0, 1)], [old.gate.part(0, whole)], 0, rows)
            if chosen.some:
                chosen.choose(cosine(hidden[whole:], old.gate.part(whole, streams), 0, rows), rows)
        backend = self.ways.compiled
        layer_step = torch.compile(_layer, backend=backend, dynamic=False, fullgraph=True) if backend else _layer
        if old is None:
            carried = hidden.flatten(0, 1)
            normed = self.layers[0].norm(carried)
        else:
            carried, normed = enter(hidden, chosen, old.trail, self.layers[0].norm, rows)
        taps = []
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            # A compiled layer has a norm to follow it even if it is the last: one compilation less.
            following = layer.norm if last and backend else None if last else self.layers[number + 1].norm
            stored, at = (None, 0) if old is None else old.at(number)
            gates = not patch and (number == 0 or self.plan.selection == "per_layer")
            assert normed is not None, "only the last layer has no norm behind it"
            carried, normed = layer_step(layer, following, carried, normed, chosen, stored, at, gates, self.ways)
            if last or number in self.taps:
                output = carried if old is None else everywhere(carried, chosen, old.trail, number + 1, rows)
                taps.append(output.view_as(hidden))
        once = self.plan.selection != "per_layer"
        times = chosen.times * (len(self.layers) if once else 1)
        return taps[-1], times, taps if len(self.layers) - 1 in self.taps else taps[:-1]


def _layer(
    layer: PackedLayer,
    following: Norm | None,
    carried: Tensor,
    normed: Tensor,
    chosen: Chosen,
    old: References | None,
    at: int,
    gates: bool,
    ways: Ways,
) -> tuple[Tensor, Tensor | None]:
    """One layer on all rows: what is carried behind it, and the norm before the next layer, `[streams * tokens, dim]`.

    Without references hidden states are carried, with them deviations: see `kernels.deviation`.
    """
    whole, some, tokens, kernels = chosen.whole, chosen.some, chosen.tokens, ways.rows
    first, streams = whole * tokens, whole + some
    keys = layer.keys(normed).view(streams, tokens, -1)
    gate = old.gate.part(whole, streams) if old is not None and some and gates else None
    turned, alike = compare_keys(keys, layer.angles, whole, gate, at, kernels)
    picked = normed
    if alike is not None:
        picked = chosen.choose(alike, kernels, normed)
    elif some:
        picked = gather_rows(normed, chosen.flat, kernels)
    assert picked is not None, "the rows were asked for"
    product = F.linear(picked, *layer.query_value)
    queries, values = product.chunk(2, dim=-1)
    queries = turn_rows(queries, chosen.flat if some else None, layer.angles, kernels)
    if whole and old is not None:
        mine = old.part(0, whole)
        kept = ([keys[:whole].flatten(0, 1)], [mine.gate]) if gates else ([], [])
        keep_rows([*kept[0], values[:first]], [*kept[1], mine.values], at, kernels)
    attended = []
    if whole:
        split = [part[:first].unflatten(0, (whole, tokens)) for part in (queries, values)]
        attended.append(layer.attend(split[0], turned[:whole], split[1], ways.whole_attention).flatten(0, 1))
    if some:
        assert old is not None
        asking = queries[first:].unflatten(0, (some, chosen.count))
        mixed = ValueRows(values, chosen.rows, old.values.part(whole, streams), at)
        in_place = ways.some_attention in IN_PLACE
        if layer.heads is not None and in_place and some > ways.few:
            answer = attend_in_place(asking, turned[whole:], mixed, *layer.heads, ways.some_attention)
        elif layer.windows is not None:
            answer = layer.windows(asking, turned[whole:], mixed, chosen, kernels)
        else:
            answer = layer.attend(
                asking, turned[whole:], mixed.fill(kernels), "split" if in_place else ways.some_attention
            )
        attended.append(answer.flatten(0, 1))
    attention = layer.out(attended[0] if len(attended) == 1 else torch.cat(attended))
    if old is None:
        middle, inner = residual_norm(carried, attention, layer.mlp_norm, kernels)
    else:
        middle, inner = add_branch(carried, chosen, attention, old.trail, at, layer.mlp_norm, kernels)
    mlp = layer.feed(inner)
    if old is not None:
        return carried, advance(carried, chosen, middle, mlp, old.trail, at, following, kernels)
    return residual_norm(middle, mlp, following, kernels) if following is not None else (middle + mlp, None)
