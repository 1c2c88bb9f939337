"""What stops every stream at once, on the host: garbage that is collected, and kernels that are compiled."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

RARELY = (1_000, 10, 1_000)
"""Python looks at young objects when there are so many more, at those of middle age after so many of these times, and
at all there are after so many of those. The young are looked at as often as ever: a few of them may hold pictures."""


@contextlib.contextmanager
def rarely_collected() -> Iterator[None]:
    """Let Python look for garbage among what has come since, and hardly ever among everything.

    What the libraries and a model are made of are 400,000 objects, to which a stream of 90 blocks adds some 1,500. To
    look at all of them takes a quarter of a second to a second, in which no stream moves, and Python does it whenever
    there are a quarter more. What is freed in the ordinary way is freed as before. Within another of these, nothing.
    """
    before = gc.get_threshold()
    if before == RARELY:
        yield
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@dataclass
class Paused:
    """What has been counted."""

    collected_s: float = 0.0
    """Seconds in which Python looked for garbage."""
    compiled: list[str] = field(default_factory=list)
    """Names of the Triton kernels, in their order; one may come several times, for several kinds of arguments."""

    @property
    def told(self) -> str:
        """In words; empty where there was nothing."""
        parts = [f"{self.collected_s:.2f} s of looking for garbage"] if self.collected_s >= 0.01 else []
        parts += [f"compiled {', '.join(dict.fromkeys(self.compiled))}"] if self.compiled else []
        return "; ".join(parts)


class Pauses:
    """Counts pauses of this process while it is entered."""

    def __init__(self) -> None:
        self.paused = Paused()
        self._began_s = 0.0
        self._other_hook: Any = None

    def take(self) -> Paused:
        """What has been counted since the last time."""
        taken, self.paused = self.paused, Paused()
        return taken

    def __enter__(self) -> "Pauses":
        gc.callbacks.append(self._collects)
        if (runtime := _triton_runtime()) is not None:
            self._other_hook, runtime.jit_post_compile_hook = runtime.jit_post_compile_hook, self._compiled
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._collects)
        if (runtime := _triton_runtime()) is not None:
            runtime.jit_post_compile_hook = self._other_hook

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
            return
        self.paused.collected_s += time.perf_counter() - self._began_s

    def _compiled(self, **about: Any) -> Any:
        self.paused.compiled.append(about["fn"].name)
        return None if self._other_hook is None else self._other_hook(**about)


def _triton_runtime() -> Any:
    """Triton's settings, where it is in use already: nobody else compiles kernels."""
    return None if "triton" not in sys.modules else sys.modules["triton"].knobs.runtime
