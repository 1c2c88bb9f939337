"""A trial: MLPs of which the second product takes only the hidden units that tell the chosen tokens apart.

An encoder file: `python -m benchmarks.cacher_table answers --variants benchmarks/cacher_small.py:units=0.3,tau=0.5`.
Of the units that are left out every chosen token gets their mean over the chosen tokens, which is one row for all. It
costs half of an MLP and that share of the other half; for towers whose MLP has two products (SigLIP, CLIP).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionTower
from onlooker.encode.stc_corrected import CorrectedState, STCCorrected
from onlooker.encode.stc_corrected._step import Step


class _Units:
    """A vision layer with such an MLP."""

    def __init__(self, layer: object, share: float) -> None:
        self._layer, self._share = layer, share

    def __getattr__(self, name: str) -> object:
        return getattr(self._layer, name)

    def mlp(self, hidden: Tensor) -> Tensor:
        """The branch of tokens `[1, tokens, dim]`."""
        layer, mlp = self._layer, self._layer._mlp  # pyright: ignore[reportAttributeAccessIssue] - a SigLIP layer
        inner = mlp.activation_fn(mlp.fc1(layer._mlp_norm(hidden)))  # pyright: ignore[reportAttributeAccessIssue]
        mean, weight = inner.mean(1, keepdim=True), mlp.fc2.weight
        gain = (inner - mean).square().sum((0, 1)) * weight.square().sum(0)
        units = gain.topk(max(1, round(self._share * len(gain)))).indices
        return F.linear(mean, weight, mlp.fc2.bias) + (inner - mean)[..., units] @ weight[:, units].T


class _CheaperStep(Step):
    """A frame whose MLPs count for what they cost."""

    def finish(self) -> Tensor:
        self.times[2] *= (1 + self.method.units) / 2  # pyright: ignore[reportAttributeAccessIssue] - the trial's own
        return super().finish()


@dataclass(frozen=True)
class SomeUnits(STCCorrected):
    """The corrected form with cheaper MLPs in frames that reuse."""

    units: float = 0.5
    """Share of the hidden units that the second product takes."""

    def _reuse(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CorrectedState]) -> Encoded:
        outputs, layers = [], [_Units(layer, self.units) for layer in tower.layers]
        for place, state in enumerate(states):
            x, sketches = hidden[place : place + 1], seen[place : place + 1]
            step = _CheaperStep(self, tower, state, x)
            step.tower = _with(tower, layers)
            for number in range(len(layers)):
                x, sketches = step.layer(number, x, sketches)
            outputs.append(x)
            step.finish()
            state.age += 1
            self.follow_budget(tower, state)
        return Encoded(torch.cat(outputs), {}, None, (False,) * len(states))


def _with(tower: VisionTower, layers: list[_Units]) -> VisionTower:
    return replace(tower, layers=layers)  # pyright: ignore[reportArgumentType] - layers by `__getattr__`
