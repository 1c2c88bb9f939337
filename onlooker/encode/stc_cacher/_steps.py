"""The layers of a step by kernels: frames that are computed whole, and frames that reuse what their streams keep."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts.packed import PackedLayer
from onlooker.kernels.coded import ChosenRows, CodedStep
from onlooker.kernels.rotary import turn_rows
from onlooker.kernels.rows import Kernels


@dataclass(frozen=True)
class StepLayers:
    """A tower's packed layers over the rows of all streams of a step."""

    layers: Sequence[PackedLayer]
    taps: tuple[int, ...]
    """Layers whose output is wanted too, ascending."""
    kernels: Kernels
    way: str
    """How to attend: one of `head_attention.WAYS`."""

    def whole(self, hidden: Tensor, step: CodedStep) -> list[Tensor]:
        """All tokens of frames `[streams, tokens, dim]`, everything stored: output of every tapped layer, and the last
        one's, like `hidden`."""
        everyone, outputs = ChosenRows.all(step.shape, hidden.device), []
        x = hidden.reshape(-1, hidden.shape[2])
        normed = self.layers[0].norm(x)
        step.enter(x, keep=True)
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            keys = layer.keys(normed)
            queries, values = F.linear(normed, *layer.query_value).chunk(2, dim=-1)
            step.keep({"keys": keys, "values": values}, everyone, number)
            parts = (turn_rows(part, None, layer.angles, self.kernels) for part in (queries, keys))
            attended = layer.attend(
                *(part.view_as(hidden) for part in parts), values.unflatten(0, hidden.shape[:2]), self.way
            )
            attention = layer.out(attended.flatten(0, 1))
            middle, inner = step.keep_residual(x, attention, "attention", number, layer.mlp_norm)
            step.carry(step.sums(attention), everyone, "attention", number, ("middle", number), keep=True)
            mlp = layer.feed(inner)
            x, normed = step.keep_residual(middle, mlp, "mlp", number, None if last else self.layers[number + 1].norm)
            step.carry(step.sums(mlp), everyone, "mlp", number, None if last else ("entered", number + 1), keep=True)
            if last or number in self.taps:
                outputs.append(x.view_as(hidden))
        return outputs

    def some(self, hidden: Tensor, step: CodedStep) -> list[Tensor]:
        """Those tokens that changed; outputs as of `whole`. What is computed replaces what was stored."""
        outputs = []
        step.times.zero_()
        x = hidden.reshape(-1, hidden.shape[2])
        step.enter(x)
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            x = self._layer(layer, number, x, step, None if last else ("entered", number + 1))
            if last or number in self.taps:
                outputs.append(x.view_as(hidden))
        return outputs

    def _layer(
        self, layer: PackedLayer, number: int, x: Tensor, step: CodedStep, then: tuple[str, int] | None
    ) -> Tensor:
        dim, (weight, bias) = step.shape.dim, layer.query_value
        step.choose(step.looking, number)
        normed, changed = step.norm(x, step.looking, layer.norm)
        values, keys = F.linear(changed, *layer.value_key).chunk(2, dim=-1)
        step.keep({"keys": keys, "values": values}, step.looking, number)
        queries = F.linear(normed, weight[:dim], bias[:dim])
        attention = layer.out(self._look(layer, number, queries, step))
        sums = step.sums(attention)
        step.miss(attention, sums, number)
        step.carry(sums, step.looking, "attention", number, ("middle", number))
        step.choose(step.working, number)
        mlp = layer.feed(step.norm_middle(x, attention, number, layer.mlp_norm))
        step.carry(step.sums(mlp), step.working, "mlp", number, then)
        return step.finish(x, attention, mlp, number)

    def _look(self, layer: PackedLayer, number: int, queries: Tensor, step: CodedStep) -> Tensor:
        """Attention of the rows that look, before its output projection, `[streams * room, dim]`."""
        shape, flat = step.shape, step.looking.flat
        keys, values = step.fill(number)
        queries = turn_rows(queries, flat, layer.angles, self.kernels)
        keys = turn_rows(keys.flatten(0, 1), None, layer.angles, self.kernels).view_as(values)
        if layer.windows is None:
            return layer.attend(queries.unflatten(0, (shape.streams, -1)), keys, values, self.way).flatten(0, 1)
        # A window has few tokens: empty places among them cost little. Where a token has two rows, both say the same.
        asking = torch.zeros_like(keys).flatten(0, 1).index_copy_(0, flat, queries).view_as(keys)
        return layer.attend(asking, keys, values, self.way).flatten(0, 1).index_select(0, flat)
