"""A frame's tokens pooled to fewer ones, as the fixed linear map that bilinear resampling is.

PyTorch's resampling kernel wants channels first and works on a few outputs of one channel at a time: with 3,584
channels and 14 x 14 outputs it took a third of a whole step on an H100. The map depends on the two sizes only, so here
it is a matrix `[outputs, tokens]` and one product over tokens as they lie.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.kernels.pooled import Taps, mix_rows, pooling_kernels


def bilinear_map(rows_cols: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Weights of `F.interpolate(mode="bilinear")` between two grids in raster order, float32 `[outputs, tokens]`."""
    tokens = rows_cols[0] * rows_cols[1]
    pictures = torch.eye(tokens).view(tokens, 1, *rows_cols)
    return F.interpolate(pictures, size=to, mode="bilinear").flatten(1).t().contiguous()


class Pooling:
    """Tokens `[streams, tokens, dim]` of a grid to those of a smaller grid, `[streams, outputs, dim]`.

    On a CUDA device, where no gradient is wanted, each output is the sum of its (four) rows. As a product: half
    precision cannot hold the weights (they would be off by as much as the result is rounded), so there they are two
    matrices, the second of what the first leaves over, and the sum is rounded once: as exact as the stock module.
    """

    def __init__(self, rows_cols: tuple[int, int], to: tuple[int, int]) -> None:
        self._weights = bilinear_map(rows_cols, to)
        self._taps: dict[torch.device, Taps] = {}
        self._ready: dict[tuple[torch.device, torch.dtype], Callable[[Tensor], Tensor]] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        if tokens.is_cuda and not (torch.is_grad_enabled() and tokens.requires_grad):
            if tokens.device not in self._taps:
                self._taps[tokens.device] = Taps.of(self._weights).to(tokens.device)
            return mix_rows(tokens, self._taps[tokens.device], pooling_kernels(tokens.device))
        kind = (tokens.device, tokens.dtype)
        if kind not in self._ready:
            self._ready[kind] = self._for(*kind)
        return self._ready[kind](tokens)

    def _for(self, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        weights = self._weights.to(device)
        main = weights.to(dtype)
        if dtype.itemsize > 2:
            return lambda tokens: torch.matmul(main, tokens)
        rest = (weights - main.float()).to(dtype)

        def pooled(tokens: Tensor) -> Tensor:
            shape = (len(tokens), -1, -1)
            return torch.baddbmm(torch.bmm(rest.expand(shape), tokens), main.expand(shape), tokens)

        return pooled
