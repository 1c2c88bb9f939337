"""Steps of fixed shape: captured once as a CUDA graph and replayed, or run as they are where there are no graphs."""

import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onlooker.core.errors import InputError, ModelError

WARM_UPS = 2
"""Calls before a capture: libraries set themselves up and kernels are compiled at the first, which cannot be captured.
"""

Outputs = tuple[Tensor, ...]


def bucket_sizes(most: int) -> list[int]:
    """Numbers of streams that steps are made for, up to `most`: a fifth of a large step is padding at most, a third of
    a small one."""
    sizes, steps = [1], ((4, 1), (8, 2), (32, 4), (64, 8), (2**60, 16))
    while sizes[-1] < most:
        sizes.append(sizes[-1] + next(step for below, step in steps if sizes[-1] < below))
    return [*sizes[:-1], most] if most > 1 else sizes


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """The stream of all trial runs on a device: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _noting_empty() -> Iterator[list[str]]:
    """What is said of a capture in which nothing was launched; other warnings go on as they are."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield found
    for one in told:
        if "CUDA Graph is empty" in str(one.message):
            found.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Garbage waits: where an earlier step is part of it, letting go of its graph would end a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class CapturedStep:
    """`function(*inputs)`, a tuple of tensors, for inputs of fixed shape, dtype and device.

    On a CUDA device the function is captured when the step is made and replayed at every call, without Python work or
    launch gaps; elsewhere, without `capture`, or where it launches nothing, it runs as it is, over the same buffers and
    by the same rules:

    - The function reads its inputs and tensors that stay where they are as long as the step lives (weights, caches); it
      may write into such caches. It does not wait for the device (`.item()`, `.tolist()`, a mask as an index).
    - It runs `WARM_UPS` times, and once more to be captured, over what `inputs` hold then. A function that writes into
      a cache needs inputs that make this harmless, such as row numbers or addresses of nobody.
    - Steps with one `pool` (`CapturedStep.new_pool(device)`) share scratch memory and must not run at the same time.

    Calling a step copies the given tensors into its own inputs and returns copies: no later call changes a result. To
    save the copies, fill `step.inputs` in place and call `step.replay()`; its outputs belong to the step and hold until
    the next replay of any step of the pool.

    Raises `ModelError` when the capture fails; a step never falls back to slower ways by itself.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Outputs],
        inputs: Sequence[Tensor],
        *,
        pool: Any = None,
        capture: bool = True,
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        """The step's own buffers."""
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if capture and self.inputs[0].is_cuda:
            self._capture(pool)

    @staticmethod
    def new_pool(device: torch.device) -> Any:
        """Scratch memory that several steps may share; None where there are no graphs."""
        return torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, *given: Tensor) -> Outputs:
        """Run over copies of `given`; the outputs are the caller's. Raises `InputError` when a shape does not fit."""
        for number, (own, new) in enumerate(zip(self.inputs, given, strict=True)):
            if (own.shape, own.dtype) != (new.shape, new.dtype):
                raise InputError(
                    f"{self.name}: input {number} does not fit this step",
                    given=f"{tuple(new.shape)} {new.dtype}",
                    do=f"give {tuple(own.shape)} {own.dtype}, or prepare a step of that shape at start",
                )
            own.copy_(new)
        return tuple(output.clone() for output in self.replay())

    @torch.no_grad()
    def replay(self) -> Outputs:
        """Run over what `inputs` hold; the outputs hold until the next replay of any step of the pool."""
        if self._graph is None:
            return self._function(*self.inputs)
        self._graph.replay()
        return self._outputs

    @torch.no_grad()
    def _capture(self, pool: Any) -> None:
        try:
            device = self.inputs[0].device
            current = torch.cuda.current_stream(device)
            side = _side(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):  # and on its card, which a graph and a kernel take from the thread
                for _ in range(WARM_UPS):
                    self._function(*self.inputs)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with (
                _collecting_nothing(),
                _noting_empty() as empty,
                torch.cuda.graph(graph, pool=pool, stream=side),
            ):
                outputs = self._function(*self.inputs)
        except Exception as error:  # whatever a library raises there, the remedy is the same
            # The device's random numbers count as being captured until a capture ends well.
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(device)):
                torch.zeros(1, device=device)
            raise ModelError(
                f"{self.name} cannot be captured as a CUDA graph",
                given=f"{type(error).__name__}: {error}",
                do="run without graphs, or report the method that waits for the device",
            ) from error
        if not empty:  # a step without work launches nothing as it is
            self._graph, self._outputs = graph, outputs
