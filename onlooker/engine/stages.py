"""Where the time of a step goes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from onlooker.engine.session import Session


class Stages:
    """Shares the time of every stage among the sessions that took part.

    Device work is asynchronous: times are true on a CPU, and on other devices only with `profile`, which waits at the
    end of every stage.
    """

    def __init__(self, profile: bool) -> None:
        self.profile = profile

    @contextmanager
    def __call__(self, name: str, sessions: Sequence[Session], device: torch.device) -> Iterator[None]:
        """The time of what is done within, under this name in `SessionStats.stage_s`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.profile and device.type == "cuda":
                torch.cuda.synchronize(device)
            spent = (time.perf_counter() - began) / max(1, len(sessions))
            for session in sessions:
                stages = session.totals.stage_s
                stages[name] = stages.get(name, 0.0) + spent
