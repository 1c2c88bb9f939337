"""Many runs at once: over processes of this machine, each with its share of cores or its GPU, or over a Ray cluster."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from onlooker.core.errors import InputError
from onlooker.evals.runs import Run, execute, folder_of, open_run
from onlooker.evals.settings import RunSettings

POLL_S = 0.5


@dataclass(frozen=True)
class Finished:
    """How one run of a grid ended."""

    settings: RunSettings
    folder: Path
    failure: str = ""
    """Why the run as a whole did not happen (its model does not load, its folder is taken)."""


def run_grid(
    grid: Sequence[RunSettings],
    root: Path,
    *,
    workers: int = 1,
    gpus: int = 0,
    ray: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Finished]:
    """Do every run of a grid that is not finished yet, below `root`. Runs that fail as a whole do not stop the others.

    `on_progress` is told how many questions of all runs are answered. With `gpus`, run number i uses `cuda:{i % gpus}`.
    """
    jobs = [
        (replace(one, device=f"cuda:{place % gpus}") if gpus else one, folder_of(one, root))
        for place, one in enumerate(grid)
    ]
    if ray:
        return _on_ray(jobs)
    if workers <= 1:
        return [_counted(job, jobs, on_progress) for job in jobs]
    # A fresh interpreter each: a forked one would share torch's threads, and CUDA forbids it.
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_set_threads, initargs=(threads,)) as pool:
        futures: list[Future[Finished]] = [pool.submit(do_run, *job) for job in jobs]
        while not all(future.done() for future in futures):
            on_progress(_answered(jobs))
            time.sleep(POLL_S)
        on_progress(_answered(jobs))
        return [future.result() for future in futures]


def do_run(settings: RunSettings, folder: Path) -> Finished:
    """One run; one that is finished is left as it is."""
    if (folder / "done.json").is_file():
        return Finished(settings, folder)
    try:
        execute(settings, folder)
    except Exception as error:
        return Finished(settings, folder, f"{type(error).__name__}: {error}")
    return Finished(settings, folder)


def results(finished: Sequence[Finished]) -> list[Run]:
    """The runs that came to their end."""
    return [open_run(one.folder) for one in finished if not one.failure]


def _counted(job: tuple[RunSettings, Path], jobs: Sequence[tuple[RunSettings, Path]], on_progress) -> Finished:
    settings, folder = job
    if (folder / "done.json").is_file():
        on_progress(_answered(jobs))
        return Finished(settings, folder)
    try:
        execute(settings, folder, on_outcome=lambda _: on_progress(_answered(jobs)))
    except Exception as error:
        return Finished(settings, folder, f"{type(error).__name__}: {error}")
    on_progress(_answered(jobs))
    return Finished(settings, folder)


def _answered(jobs: Sequence[tuple[RunSettings, Path]]) -> int:
    """Questions on disk; workers write a line for each, so nothing has to be sent."""
    total = 0
    for _, folder in jobs:
        path = folder / "answers.jsonl"
        if path.is_file():
            with path.open("rb") as file:
                total += sum(1 for _ in file)
    return total


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _on_ray(jobs: Sequence[tuple[RunSettings, Path]]) -> list[Finished]:
    """The same over a Ray cluster whose machines share the output folder; a run takes one GPU where there are any."""
    try:
        import ray  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise InputError("Ray is not installed", given="--ray", do="pip install 'ray', or use --workers") from error
    if not ray.is_initialized():
        ray.init()
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus)(do_run)
    # Ray shows a task its own GPU only, which is number 0 there.
    return ray.get([remote.remote(replace(s, device="cuda:0") if gpus else s, folder) for s, folder in jobs])
