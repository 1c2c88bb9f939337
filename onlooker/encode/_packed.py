"""One step of a vision tower for many streams at once: those that refresh and those that do not, in one list of rows.

Every product of a layer runs over the rows of all streams together: all tokens of the streams whose frame is computed
whole, then only the chosen tokens of the others. A dense tower is the step in which all streams are whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from onlooker.core.contracts import PackedLayer, VisionTower
from onlooker.core.errors import ModelError
from onlooker.kernels.rows import (
    Kernels,
    Stored,
    advance,
    fill_values,
    gather_rows,
    keep_rows,
    residual_norm,
    vision_kernels,
)
from onlooker.kernels.selection import Chosen, cosine


@dataclass(frozen=True)
class Plan:
    """What a packed step does with its streams."""

    count: int = 0
    """Tokens computed of a stream that does not refresh; 0: there are no such streams, and nothing is remembered."""
    selection: Literal["per_layer", "shared", "patch"] = "per_layer"
    """Who chooses them: see `STCCacher.selection`."""


@dataclass(frozen=True)
class Ways:
    """How a packed step is computed; the results are the same within rounding."""

    rows: Kernels = None
    """Triton kernels for rows, norms, references and the choice of tokens; None: plain PyTorch."""
    whole_attention: str = "torch"
    """Attention of whole frames: one of `head_attention.WAYS`."""
    some_attention: str = "torch"
    """Attention of chosen tokens."""
    compiled: str | Callable[..., Any] | None = None
    """Backend of `torch.compile` ("inductor") through which every layer runs, all layers sharing the code; None: not
    compiled. For plain PyTorch only."""


def fastest_ways(like: Tensor) -> Ways:
    """The way that was measured to be fastest on this device: kernels on CUDA, plain PyTorch elsewhere."""
    if not like.is_cuda:
        return Ways()
    if like.shape[-1] * like.element_size() % 16:
        raise ModelError(
            "the vision kernels read rows by 16 bytes", given=f"rows of {like.shape[-1]}", do="use no graphs"
        )
    return Ways(vision_kernels(), whole_attention="cudnn", some_attention="split")


def packed_layers(tower: VisionTower) -> Sequence[PackedLayer]:
    """The tower's layers in packed form. Raises `ModelError` when it has none."""
    if tower.pack is None or tower.tap_layers:
        raise ModelError(
            "this model's vision tower has no packed form yet",
            given="layers that are tapped" if tower.tap_layers else "no packed layers",
            do="run the encoder without graphs, or use a model with a SigLIP or CLIP tower",
        )
    return tower.pack()


class References(NamedTuple):
    """What the streams of a step have stored, or are about to store: see `CacherState`."""

    gate: Stored
    values: Stored
    sums: Stored

    def part(self, first: int, last: int) -> "References":
        """Streams `first` to `last`."""
        return References(*(stored.part(first, last) for stored in self))

    def at(self, layer: int) -> tuple["References", int]:
        """One layer: a view, so that compiled code need not know its number; or all and the number, for addresses."""
        if self.sums.stack is None:
            return self, layer
        gate = self.gate.stack
        assert gate is not None and self.values.stack is not None
        number = min(layer, gate.shape[1] - 1)
        cut = (gate[:, number : number + 1], self.values.stack[:, layer : layer + 1])
        return References(Stored(cut[0]), Stored(cut[1]), Stored(self.sums.stack[:, layer : layer + 1])), 0


@dataclass
class PackedTower:
    """A tower's packed layers and one way to run them."""

    layers: Sequence[PackedLayer]
    plan: Plan
    ways: Ways = field(default_factory=Ways)

    def chosen(self, hidden: Tensor, whole: int) -> Chosen:
        """Room for the choice of a step of this shape; a step that runs often keeps it."""
        return Chosen(whole, len(hidden) - whole, hidden.shape[1], self.plan.count, hidden.device)

    def run(self, hidden: Tensor, chosen: Chosen, old: References | None) -> tuple[Tensor, Tensor]:
        """All layers. The first streams of `hidden` (`[streams, tokens, dim]`), as many as `chosen` says, are computed
        whole and stored, the others reuse what is stored. Returns the output and, float32 `[others, tokens]`, how often
        each token of the others was computed."""
        streams, _, dim = hidden.shape
        whole, some, rows = chosen.whole, chosen.some, self.ways.rows
        chosen.times.zero_()
        patch = self.plan.selection == "patch"
        if old is not None and patch:
            if whole:
                keep_rows(hidden[:whole].flatten(0, 1), None, old.gate.part(0, whole), 0, rows)
            if some:
                chosen.choose(cosine(hidden[whole:], old.gate.part(whole, streams), 0, rows), rows)
        backend = self.ways.compiled
        layer_step = torch.compile(_layer, backend=backend, dynamic=False, fullgraph=True) if backend else _layer
        flat = hidden.reshape(-1, dim)
        normed = self.layers[0].norm(flat)
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            # A compiled layer has a norm to follow it even if it is the last: one compilation less.
            following = layer.norm if last and backend else None if last else self.layers[number + 1].norm
            stored, at = (None, 0) if old is None else old.at(number)
            gates = not patch and (number == 0 or self.plan.selection == "per_layer")
            flat, normed = layer_step(layer, following, flat, normed, chosen, stored, at, gates, self.ways)
        once = self.plan.selection != "per_layer"
        return flat.view_as(hidden), chosen.times * (len(self.layers) if once else 1)


def _layer(
    layer: PackedLayer,
    following: torch.nn.LayerNorm | None,
    flat: Tensor,
    normed: Tensor,
    chosen: Chosen,
    old: References | None,
    at: int,
    gates: bool,
    ways: Ways,
) -> tuple[Tensor, Tensor]:
    """One layer on all rows: its output and the norm of it before the next layer, `[streams * tokens, dim]` each."""
    whole, some, tokens, kernels = chosen.whole, chosen.some, chosen.tokens, ways.rows
    first, streams = whole * tokens, whole + some
    keys = layer.keys(normed).view(streams, tokens, -1)
    if some and gates:
        assert old is not None
        chosen.choose(cosine(keys[whole:], old.gate.part(whole, streams), at, kernels), kernels)
    queries, values = layer.queries_values(gather_rows(normed, chosen.flat, kernels) if some else normed)
    attended = []
    if whole:
        split = [part[:first].unflatten(0, (whole, tokens)) for part in (queries, values)]
        attended.append(layer.attend(split[0], keys[:whole], split[1], ways.whole_attention).flatten(0, 1))
    if some:
        assert old is not None
        filled = fill_values(values, chosen.place[first:], old.values.part(whole, streams), at, kernels)
        asking = queries[first:].unflatten(0, (some, chosen.count))
        attended.append(layer.attend(asking, keys[whole:], filled, ways.some_attention).flatten(0, 1))
    attention = layer.out(attended[0] if len(attended) == 1 else torch.cat(attended))
    middle, inner = residual_norm(flat, chosen.flat if some else None, attention, layer.mlp_norm, kernels)
    mlp = layer.feed(inner)
    if whole and old is not None:
        mine = old.part(0, whole)
        if gates:
            keep_rows(keys[:whole].flatten(0, 1), None, mine.gate, at, kernels)
        keep_rows(values[:first], None, mine.values, at, kernels)
        keep_rows(attention[:first], mlp[:first], mine.sums, at, kernels)
    if some:
        assert old is not None
        return advance(flat, chosen.place, middle, mlp, old.sums, at, following, kernels)
    if following is None:
        output = middle + mlp
        return output, output
    return residual_norm(middle, None, mlp, following, kernels)
