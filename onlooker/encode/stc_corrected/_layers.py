"""The layers of a step of the corrected form by kernels: frames that are computed whole, and frames that reuse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import VisionTower
from onlooker.core.contracts.packed import PackedLayer
from onlooker.encode._packed import packed_layers
from onlooker.kernels.corrected import CorrectedStep
from onlooker.kernels.corrected_whole import WholeStep
from onlooker.kernels.head_attention import attend_heads


@dataclass(frozen=True)
class CorrectedLayers:
    """A tower's packed layers over the rows of all streams of a step."""

    layers: Sequence[PackedLayer]
    outputs: Sequence[tuple[Tensor, Tensor]]
    """Of each layer the output projection, and below it that of the sketch of what it makes: weight `[dim + 64, dim]`
    and bias. A sketch is a product, and so is a projection: both at once cost little more than one."""
    taps: tuple[int, ...]
    """Layers whose output is wanted too, ascending."""
    way: str
    """How tokens attend: see `attend_heads`."""

    @classmethod
    def of(cls, tower: VisionTower, projection: Tensor, way: str) -> Self:
        """Those of a tower; `projection` makes sketches, float32 `[dim, 64]`."""
        layers = packed_layers(tower)
        outputs = []
        for weight, bias in (layer.output for layer in layers):
            sketch = (projection.T @ weight.float()).to(weight.dtype), (bias.float() @ projection).to(bias.dtype)
            outputs.append((torch.cat([weight, sketch[0]]), torch.cat([bias, sketch[1]])))
        return cls(layers, outputs, tuple(sorted(tower.tap_layers)), way)

    def some(self, hidden: Tensor, step: CorrectedStep) -> list[Tensor]:
        """Frames `[streams, tokens, dim]` of which what changed is computed: output of every tapped layer, and the last
        one's, like `hidden`. What is computed replaces what was kept."""
        outputs, x, dim = [], hidden.reshape(-1, hidden.shape[2]), hidden.shape[2]
        step.times.zero_()
        step.enter(x)
        step.choose(0)
        normed = step.norm_looking(x, 0, self.layers[0].norm)
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            asking = F.linear(normed, *layer.query_value_key)
            made = F.linear(step.attend(asking, number), *self.outputs[number])
            branch, sketches = made[:, :dim], made[:, dim:]
            step.carry_attention(sketches, number)
            step.choose(number, middle=True)
            mlp = layer.feed(step.norm_middle(x, branch, number, layer.mlp_norm))
            step.carry_mlp(mlp, number)
            if not last:
                step.choose(number + 1)
            x, normed = step.finish(x, branch, mlp, number, None if last else self.layers[number + 1].norm)
            if last or number in self.taps:
                outputs.append(x.view_as(hidden))
        return outputs

    def whole(self, hidden: Tensor, step: WholeStep) -> list[Tensor]:
        """All tokens, everything kept; outputs as of `some`."""
        outputs, x, dim = [], hidden.reshape(-1, hidden.shape[2]), hidden.shape[2]
        normed = self.layers[0].norm(x)
        step.enter(x)
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            fresh = F.linear(normed, *layer.query_value_key)
            assert layer.heads is not None
            parts = fresh.unflatten(0, hidden.shape[:2]).split(dim, dim=-1)
            attended = attend_heads(parts[0], parts[2], parts[1], *layer.heads, self.way)
            step.keep_looked(fresh, number)
            made = F.linear(attended.flatten(0, 1), *self.outputs[number])
            branch = made[:, :dim]
            x, inner = step.keep_branch(x, branch, "attention", number, layer.mlp_norm)
            step.carry_attention(made[:, dim:], number)
            mlp = layer.feed(inner)
            x, normed = step.keep_branch(x, mlp, "mlp", number, None if last else self.layers[number + 1].norm)
            step.carry_mlp(mlp, number)
            if last or number in self.taps:
                outputs.append(x.view_as(hidden))
        return outputs
