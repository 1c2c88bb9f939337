"""The packed form of a Qwen-VL tower's layers: weights side by side for steps over rows of many streams."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts.packed import Norm
from onlooker.kernels.gated import gated_rows
from onlooker.kernels.head_attention import attend_heads
from onlooker.kernels.rows import Kernels, RootMeanSquare, vision_kernels
from onlooker.kernels.window_attention import WindowAttention, WindowTable

MLP_MULTIPLE = 128
"""The width of a gated MLP is filled up to a multiple of this: rows of Qwen2.5-VL's 3420 columns are no whole number of
16 bytes, the pieces in which matrix units are fed (`benchmarks.encode_sizes` times both)."""


class PackedVisionBlock:
    """One layer over rows of many streams at one frame size: queries and values from one product, keys from another."""

    def __init__(self, module: Any, angles: tuple[Tensor, Tensor], table: WindowTable | None) -> None:
        attention = module.attn
        self.angles: tuple[Tensor, Tensor] | None = angles
        self._heads = (attention.num_heads, attention.scaling)
        self._within = None if table is None else WindowAttention(table, *self._heads)
        self.heads = self._heads if table is None else None
        self.windows = None if self._within is None else self._within.some
        self.norm, self.mlp_norm = _norm(module.norm1), _norm(module.norm2)
        weight, bias = attention.qkv.weight.detach().chunk(3), attention.qkv.bias.detach().chunk(3)
        self._keys = (weight[1], bias[1])
        # Two of three in one product: two views of one tensor.
        weights, biases = torch.cat((weight[0], weight[2], weight[1])), torch.cat((bias[0], bias[2], bias[1]))
        dim = len(weight[0])
        self.query_value = weights[: 2 * dim], biases[: 2 * dim]
        self.value_key = weights[dim:], biases[dim:]
        self.query_value_key = weights, biases
        self.out = attention.proj
        self.output = self.out.weight.detach(), self.out.bias.detach()
        self.feed = GatedFeed(module.mlp) if hasattr(module.mlp, "gate_proj") else GeluFeed(module.mlp)

    def keys(self, normed: Tensor) -> Tensor:
        return F.linear(normed, *self._keys)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, way: str) -> Tensor:
        """In windows there are two ways only: "torch" is the plain one, all others are the kernel."""
        if self._within is None:
            return attend_heads(queries, keys, values, *self._heads, way)
        return self._within.whole(queries, keys, values, None if way == "torch" else vision_kernels())


class GatedFeed:
    """A gated MLP: both first products in one, SiLU and product of the halves in one pass."""

    def __init__(self, module: Any) -> None:
        ups, down = (module.gate_proj, module.up_proj), module.down_proj
        more = -down.in_features % MLP_MULTIPLE
        # Columns of zeros: what they add is exactly nothing.
        self._up = torch.cat([F.pad(up.weight.detach(), (0, 0, 0, more)) for up in ups])
        self._up_bias = torch.cat([F.pad(up.bias.detach(), (0, more)) for up in ups])
        self._down, self._down_bias = F.pad(down.weight.detach(), (0, more)), down.bias
        self._kernels: Kernels = vision_kernels() if self._up.is_cuda else None

    def __call__(self, normed: Tensor) -> Tensor:
        inner = gated_rows(F.linear(normed, self._up, self._up_bias), self._kernels)
        return F.linear(inner, self._down, self._down_bias)


class GeluFeed:
    """A plain MLP with the tanh form of GELU, which cuBLAS has in its epilogue: a pass less over the widest tensor."""

    def __init__(self, module: Any) -> None:
        self._module, self._up, self._down = module, module.linear_fc1, module.linear_fc2
        # Not in float32: the epilogue's tanh is an approximation that only half precision does not show.
        self._inside = self._up.weight.is_cuda and self._up.weight.itemsize == 2

    def __call__(self, normed: Tensor) -> Tensor:
        if not self._inside:
            return self._module(normed)
        inner = torch._addmm_activation(self._up.bias, normed, self._up.weight.t(), use_gelu=True)
        return self._down(inner)


def _norm(module: Any) -> Norm:
    # The families' own class for norms without a mean keeps its epsilon under another name and has no bias.
    epsilon = getattr(module, "variance_epsilon", None)
    return module if epsilon is None else RootMeanSquare(module.weight.detach(), epsilon)
