"""Many runs at once: over processes of this machine, each with its share of cores or its GPU, or over a Ray cluster."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from onlooker.core.cores import threads_each
from onlooker.core.errors import InputError
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.runs import Run, execute, folder_of, open_run
from onlooker.evals.sharing import prepare, reading_of

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
    shared: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
    on_finished: Callable[[Finished], None] = lambda _: None,
) -> list[Finished]:
    """Do every run of a grid that is not finished yet, below `root`. Runs that fail as a whole do not stop the others.

    `on_progress` is told how many questions of all runs are answered, `on_finished` of every run as it ends. `shared`:
    what all runs have in common is done once (`evals/sharing.py`): they ask the same questions of one model. With
    `gpus`, run number i uses `cuda:{i % gpus}`.
    """
    if shared:
        with tempfile.TemporaryDirectory(prefix="onlooker-grid-") as folder:
            return _run_grid(grid, root, workers, gpus, ray, Path(folder), on_progress, on_finished)
    return _run_grid(grid, root, workers, gpus, ray, None, on_progress, on_finished)


def _run_grid(
    grid: Sequence[RunSettings],
    root: Path,
    workers: int,
    gpus: int,
    ray: bool,
    shared: Path | None,
    on_progress: Callable[[int], None],
    on_finished: Callable[[Finished], None],
) -> list[Finished]:
    jobs = [
        (replace(one, device=f"cuda:{place % gpus}") if gpus else one, folder_of(one, root))
        for place, one in enumerate(grid)
    ]
    if ray:
        finished = _on_ray(jobs)
        for one in finished:
            on_finished(one)
        return finished
    clips = range(len(reading_of(grid[0]).items)) if shared else ()
    if workers <= 1:
        for number in clips:
            prepare(grid[0], shared or root, number)
        finished = []
        for job in jobs:
            finished.append(_counted(job, jobs, shared, on_progress))
            on_finished(finished[-1])
        return finished
    # A fresh interpreter each: a forked one would share torch's threads, and CUDA forbids it.
    threads = threads_each(workers)
    context = multiprocessing.get_context("spawn")
    with ending_at_once(ProcessPoolExecutor(workers, context, initializer=_set_threads, initargs=(threads,))) as pool:
        for ready in [pool.submit(prepare, grid[0], shared or root, number) for number in clips]:
            ready.result()
            on_progress(_answered(jobs))
        futures: list[Future[Finished]] = [pool.submit(do_run, *job, shared) for job in jobs]
        told: set[Future[Finished]] = set()
        while len(told) < len(futures):
            for future in futures:
                if future.done() and future not in told:
                    told.add(future)
                    on_finished(future.result())
            on_progress(_answered(jobs))
            if len(told) < len(futures):
                time.sleep(POLL_S)
        return [future.result() for future in futures]


@contextmanager
def ending_at_once(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """A pool whose work ends with the block, also by an interrupt: nobody waits for what was begun, or begins more."""
    before = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    pool.shutdown()


def do_run(settings: RunSettings, folder: Path, shared: Path | None = None) -> Finished:
    """One run; one that is finished is left as it is."""
    if (folder / "done.json").is_file():
        return Finished(settings, folder)
    try:
        execute(settings, folder, shared=shared)
    except Exception as error:
        return Finished(settings, folder, f"{type(error).__name__}: {error}")
    return Finished(settings, folder)


def results(finished: Sequence[Finished]) -> list[Run]:
    """The runs that came to their end."""
    return [open_run(one.folder) for one in finished if not one.failure]


def _counted(
    job: tuple[RunSettings, Path],
    jobs: Sequence[tuple[RunSettings, Path]],
    shared: Path | None,
    on_progress: Callable[[int], None],
) -> Finished:
    settings, folder = job
    if (folder / "done.json").is_file():
        on_progress(_answered(jobs))
        return Finished(settings, folder)
    try:
        execute(settings, folder, on_outcome=lambda _: on_progress(_answered(jobs)), shared=shared)
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
