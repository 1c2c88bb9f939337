"""Where an engine computes: without gradients, and on the card of its own model, whatever the thread."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch


class Computes(Protocol):
    """Whoever has a device to compute on."""

    @property
    def device(self) -> torch.device: ...


def on_card(device: torch.device) -> AbstractContextManager[object]:
    """Make a card the current one of this thread for a while. PyTorch's own operations follow their tensors; a Triton
    kernel is launched on the current card, which is the first one in every new thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


Owner = TypeVar("Owner", bound=Computes)
Given = ParamSpec("Given")
Result = TypeVar("Result")


def computing(
    method: Callable[Concatenate[Owner, Given], Result],
) -> Callable[Concatenate[Owner, Given], Result]:
    """A method (or a function whose first argument has a device) that computes there, without gradients."""

    @wraps(method)
    def run(owner: Owner, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with torch.no_grad(), on_card(owner.device):
            return method(owner, *args, **kwargs)

    return run
