"""Streams over processes: each loads its model once, and rows are told as soon as they are there."""

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from onlooker.core.contracts import VideoModel
from onlooker.core.cores import threads_each
from onlooker.core.errors import ModelError

Job = TypeVar("Job")


def run_all(
    do: Callable[[Job], list[dict[str, Any]]], jobs: Sequence[Job], workers: int = 1
) -> Iterator[dict[str, Any]]:
    """The rows of all jobs, as they end."""
    if workers <= 1:
        for job in jobs:
            yield from do(job)
        return
    threads = threads_each(workers)
    # A fresh interpreter each: a forked one would share torch's threads, and CUDA forbids it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_set_threads, initargs=(threads,)) as pool:
        for future in as_completed([pool.submit(do, job) for job in jobs]):
            yield from future.result()


@functools.cache
def load(name: str, device: str) -> VideoModel:
    """A process loads its model once. Raises `ModelError` for one without an adapter."""
    from onlooker import models

    model = models.load(name, device=device)
    if not isinstance(model, VideoModel):
        raise ModelError("this suite needs a model with an adapter", given=name, do="see: onlooker methods")
    return model


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
