"""In which numbers the products of the language layers are computed: as they come, or 8-bit floating point (E4M3).

In 8 bits every weight row (an output channel) has a scale, found when the model is set to it, and every row of what is
multiplied (a token), found by the kernel that makes that row: the norm, SiLU with product, and one behind attention. A
product is the sum of products of 8-bit numbers, times both scales. Residuals, norms, attention, embeddings and the
scores over the vocabulary stay as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onlooker.core.errors import InputError, ModelError
from onlooker.kernels import language_rows
from onlooker.kernels.language_rows import Rows8, language_kernels

ARITHMETICS = ("model", "fp8")
CAPABILITY = (9, 0)
"""CUDA devices from here on (Hopper and newer) multiply 8-bit numbers with a scale a row."""
FITS = 16
"""Widths of such products are multiples of it."""


@dataclass(eq=False)
class Weights:
    """One product of a layer: `[outputs, inputs]`."""

    weight: Tensor
    scale: Tensor | None
    """Of each output, float32 `[outputs]`; None: the weight is plain."""
    bias: Tensor | None


class Arithmetic(ABC):
    """What language layers multiply with, and how rows are made ready for it."""

    name: str

    def __init__(self, device: torch.device) -> None:
        self.kernels: Any = language_kernels() if device.type == "cuda" else None

    def check(self, parts: Sequence[nn.Linear]) -> None:  # noqa: B027 - most multiply anything
        """Raise `ModelError` for layers that it cannot multiply with, before any is changed."""

    @abstractmethod
    def joined(self, parts: Sequence[nn.Linear]) -> Weights:
        """One product of several linear layers over the same rows, whose weights are from now on parts of it."""

    @abstractmethod
    def normed(self, hidden: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Any:
        """`hidden += more` in place, and its RMS norm, ready for products."""

    @abstractmethod
    def gated(self, gate: Tensor, up: Tensor) -> Any:
        """`silu(gate) * up`, ready for products."""

    @abstractmethod
    def ready(self, rows: Tensor) -> Any:
        """Rows `[tokens, width]`, ready for products."""

    @abstractmethod
    def product(self, rows: Any, weights: Weights) -> Tensor:
        """`[tokens, outputs]` in the model's own format."""


class ModelArithmetic(Arithmetic):
    """As the model computes."""

    name = "model"

    def joined(self, parts: Sequence[nn.Linear]) -> Weights:
        """The layers' own weights become views of the joined ones, so that none lies twice."""
        if len(parts) == 1:
            return Weights(parts[0].weight, None, parts[0].bias)
        weight = torch.cat([part.weight for part in parts]).detach()
        for part, own in zip(parts, weight.split([part.out_features for part in parts]), strict=True):
            part.weight.data = own.detach()
        return Weights(weight, None, _joined_bias(parts))

    def normed(self, hidden: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """In one pass over memory."""
        return language_rows.add_norm(hidden, more, weight, eps, self.kernels)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """In one pass over memory."""
        return language_rows.silu_product(gate, up, self.kernels)

    def ready(self, rows: Tensor) -> Tensor:
        """As they are."""
        return rows

    def product(self, rows: Tensor, weights: Weights) -> Tensor:
        """A linear layer."""
        return F.linear(rows, weights.weight, weights.bias)


class Float8Arithmetic(Arithmetic):
    """8-bit numbers with a scale a row on both sides."""

    name = "fp8"
    fast_sums = True
    """Whether the library may add up in what its matrix units keep, which is less than float32; the error of the
    numbers themselves is ten times as large."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cpu" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY):
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
            raise ModelError(
                "this device has no products of 8-bit floating point numbers with a scale a row",
                given=name,
                do="leave arithmetic out; it needs Hopper or newer (a CPU computes the same numbers, slowly)",
            )
        super().__init__(device)

    def check(self, parts: Sequence[nn.Linear]) -> None:
        """Widths that the library's products have, in the number format they give."""
        if (like := parts[0].weight).is_cuda and like.dtype != torch.bfloat16:
            given, do = str(like.dtype).removeprefix("torch."), "give dtype bfloat16, or leave arithmetic out"
            raise ModelError("8-bit products with a scale a row give bfloat16", given=given, do=do)
        for part in parts:
            if part.in_features % FITS or part.out_features % FITS:
                given = f"a product from {part.in_features} to {part.out_features}"
                do = f"leave arithmetic out; in fp8 both are multiples of {FITS}"
                raise ModelError("the model's sizes do not fit 8-bit products", given=given, do=do)

    def joined(self, parts: Sequence[nn.Linear]) -> Weights:
        """The layers' own weights are gone afterwards: in half of the memory."""
        rows = [language_rows.eight_bits(part.weight.detach()) for part in parts]
        for part in parts:
            part.weight.data = part.weight.new_empty(0, part.in_features)
        codes = rows[0].codes if len(rows) == 1 else torch.cat([one.codes.view(torch.uint8) for one in rows])
        return Weights(codes.view(language_rows.KIND_8), torch.cat([one.scale for one in rows]), _joined_bias(parts))

    def normed(self, hidden: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Rows8:
        """In one pass over memory."""
        return language_rows.add_norm_8(hidden, more, weight, eps, self.kernels)

    def gated(self, gate: Tensor, up: Tensor) -> Rows8:
        """In one kernel."""
        return language_rows.silu_product_8(gate, up, self.kernels)

    def ready(self, rows: Tensor) -> Rows8:
        """In one pass over memory."""
        return language_rows.eight_bits(rows, self.kernels)

    def product(self, rows: Rows8, weights: Weights) -> Tensor:
        """On CUDA the library's; elsewhere, exactly: what it is to be but for the order of its sums."""
        assert weights.scale is not None, "weights in 8 bits have scales"
        if rows.codes.is_cuda:
            return torch._scaled_mm(
                rows.codes,
                weights.weight.t(),
                scale_a=rows.scale[:, None],
                scale_b=weights.scale[None],
                bias=weights.bias,
                out_dtype=rows.dtype,
                use_fast_accum=self.fast_sums,
            )
        out = F.linear(rows.codes.float(), weights.weight.float()) * rows.scale[:, None] * weights.scale
        return (out if weights.bias is None else out + weights.bias.float()).to(rows.dtype)


def _joined_bias(parts: Sequence[nn.Linear]) -> Tensor | None:
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    return torch.cat(biases) if biases else None


def arithmetic(name: str, device: torch.device) -> Arithmetic:
    """By name. Raises `InputError` for an unknown one and `ModelError` for a device without it."""
    kinds = {kind.name: kind for kind in (ModelArithmetic, Float8Arithmetic)}
    if name not in kinds:
        raise InputError("there is no such arithmetic", given=name, do=f"one of: {', '.join(ARITHMETICS)}")
    return kinds[name](device)
