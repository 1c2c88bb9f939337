"""Muon for matrices and AdamW for the rest, behind one face."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with all singular values near one, of `[matrices, rows, cols]`, by Newton-Schulz iteration.

    Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with its coefficients.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    turned = x.shape[1] > x.shape[2]
    x = x.mT if turned else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if turned else x


class Optimiser:
    """One step for everything: matrices of the layers by Muon, in stacks of equal shape; all else by AdamW.

    Muon's steps are scaled to the size that AdamW's have (Liu and others, "Muon is scalable", 2025), so that both
    take the same learning rate.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], weight_decay: float = 0.05, momentum: float = 0.95
    ) -> None:
        self.weight_decay, self.momentum = weight_decay, momentum
        matrices: dict[tuple[int, ...], list[nn.Parameter]] = {}
        others: list[nn.Parameter] = []
        for name, p in named:
            inner = p.ndim == 2 and ("layers." in name or "projector" in name)
            (matrices.setdefault(tuple(p.shape), []) if inner else others).append(p)
        self.stacks = list(matrices.values())
        self.buffers = [torch.zeros(len(s), *s[0].shape, device=s[0].device) for s in self.stacks]
        on_gpu = others[0].is_cuda
        self.adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=on_gpu or None)
        self.parameters = [p for stack in self.stacks for p in stack] + others

    @torch.no_grad()
    def step(self, rate: float, clip: float = 1.0) -> Tensor:
        """Update all parameters from their gradients, clear these, and return the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        for stack, buffer in zip(self.stacks, self.buffers, strict=True):
            grad = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in stack])
            buffer.lerp_(grad, 1 - self.momentum)
            update = orthogonalise(grad.lerp(buffer, self.momentum))
            scale = 0.2 * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(stack, 1 - rate * self.weight_decay)
            torch._foreach_add_(stack, list(update.to(stack[0].dtype).unbind(0)), alpha=-rate * scale)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for p in self.parameters:
            p.grad = None
        return norm

    @torch.no_grad()
    def round_moments(self) -> None:
        """Round first moments to half precision, in which `state_dict` gives them."""
        for moment in self._first_moments():
            moment.copy_(moment.bfloat16())

    def _first_moments(self) -> list[Tensor]:
        return self.buffers + [row["exp_avg"] for row in self.adam.state.values() if "exp_avg" in row]

    def state_dict(self) -> dict:
        """Everything needed to go on exactly, once `round_moments` was called."""
        adam = self.adam.state_dict()
        adam = adam | {
            "state": {key: row | {"exp_avg": row["exp_avg"].bfloat16()} for key, row in adam["state"].items()}
        }
        return {"buffers": [buffer.bfloat16() for buffer in self.buffers], "adam": adam}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        for mine, saved in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
