"""Frames of the corrected Cacher that are computed whole, by kernels: all of it is kept, in the passes that add it up.

The steps of frames that reuse what is kept are in `corrected`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts.packed import Norm
from onlooker.kernels.corrected import WARPS, SketchStep
from onlooker.kernels.corrected_shape import PLACES, SCALED, SKETCH
from onlooker.kernels.rows import launched, norm_weights, two_parts


@dataclass
class WholeStep(SketchStep):
    """The kernels over streams of which everything is computed and kept."""

    def enter(self, x: Tensor) -> None:
        """Sketches of the tokens before the first layer, `[streams * tokens, dim]`, which keys are computed from."""
        self.carry(self.sums(x), SKETCH**-0.5, None, 0, ("entered", 0), keep=True, everyone=True)

    def carry_attention(self, sketches: Tensor, layer: int) -> None:
        """Sketches go behind attention, of which these are (`[streams * tokens, 64]`, rows may lie apart)."""
        self.carry(sketches, 1.0, "attention_sketch", layer, ("middle", layer), keep=True, everyone=True)

    def carry_mlp(self, mlp: Tensor, layer: int) -> None:
        """The same behind the MLP, of which `mlp` are the rows, to the next layer."""
        last = layer + 1 == self.shape.layers
        then = ("entered", layer if last else layer + 1)
        self.carry(self.sums(mlp), SKETCH**-0.5, "mlp_sketch", layer, then, keep=not last, everyone=True)

    def keep_looked(self, fresh: Tensor, layer: int) -> None:
        """Keep queries, values and keys of whole frames, `[streams * tokens, 3 * dim]`."""
        shape = self.shape
        self.others.keep_looked[(shape.tokens, shape.streams, 3)](
            fresh,
            *(self.at(name) for name in ("queries", "keys", "values", "scales")),
            shape.tokens,
            layer,
            shape.layers,
            shape.dim,
            **PLACES,
            **two_parts(shape.dim),
            **launched(fresh.device, WARPS),
        )

    def keep_branch(self, x: Tensor, branch: Tensor, kind: str, layer: int, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """`x` plus a branch of whole frames, which is kept, and its norm (none: anything), `[rows, dim]` each."""
        shape, total = self.shape, torch.empty_like(x)
        normed = total if norm is None else torch.empty_like(x)
        self.others.keep_branch[(shape.tokens, shape.streams)](
            x,
            branch,
            branch.stride(0),
            self.at(kind),
            self.at("scales"),
            *((x, x) if norm is None else norm_weights(norm)),
            total,
            normed,
            shape.tokens,
            layer,
            shape.layers,
            shape.dim,
            0.0 if norm is None else norm.eps,
            B=SCALED.index(kind),
            NARROW=kind == "attention",
            NORM=norm is not None,
            RMS=norm is not None and norm.bias is None,
            **two_parts(shape.dim),
            **launched(x.device, WARPS),
        )
        return total, normed
