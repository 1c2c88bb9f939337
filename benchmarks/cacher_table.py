"""Forms of the Cacher beside each other: answers, error of the tower, arithmetic; on clips, long streams and footage.

    python -m benchmarks.cacher_table answers --clips 60 --first-seed 900000 --device cuda --workers 8 --out rows.jsonl
    python -m benchmarks.cacher_table long --minutes 30 --clips 24 --device cuda --workers 4 --out rows.jsonl
    python -m benchmarks.cacher_table footage --footage FOLDER --device cuda --out rows.jsonl
    python -m benchmarks.cacher_table show --out rows.jsonl

*answers*: Pocket World clips of 24 s, eight questions each, full memory, nothing but the encoder differs. *long*:
streams of clips one after another for so many minutes, the last of which is asked about; the encoder's state comes from
the first (`full` keeps nothing of a frame, so it is only shown the last). *footage*: relative error of the tower's
output against dense on video files (or .npz with `frames`, uint8 `[frames, rows, cols, 3]`, and `times_s`) at 1 and 4
frames per second, and on a still second of a noisy camera.

Everything is computed in float32. Arithmetic is counted for SigLIP-so400m at 384 pixels, as a share of dense: of all
frames, and of all but the first of each stream. Rows are added to the file as they come; what it has is not done again.
Frames are made in processes of their own; `--workers` processes share the device.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cacher_clips import CLIP_S, files_of, film, images_of, make_frames, still, with_frames
from benchmarks.cacher_count import Counted, Tally
from benchmarks.cacher_show import rows_of, show
from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.contracts import VideoModel
from onlooker.core.state import StreamState
from onlooker.encode.full import Full
from onlooker.engine import Engine
from onlooker.evals.replay import replay
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.score import marks
from onlooker.world import LEVEL_NAMES

VARIANTS = (
    "full",
    "stc_published",
    "stc_published:interval=2",
    "stc_published:reference=rolling",
    *(f"stc_cacher:tau={tau},look_every={n}" for tau, n in ((0.25, 1), (0.3, 1), (0.3, 2), (0.4, 1), (0.4, 2))),
    *(f"stc_cacher:tau={tau},look_every={n}" for tau, n in ((0.5, 1), (0.5, 2), (0.5, 3), (0.6, 2), (0.6, 3))),
    *(f"stc_cacher:tau={tau},look_every={n},refresh_share=none" for tau, n in ((0.4, 1), (0.4, 2), (0.5, 2), (0.5, 3))),
    *(f"stc_cacher:tau={tau},look_every=4,refresh_share=none" for tau in (0.6, 0.7)),
    "stc_cacher:tau=0.4,look_every=2,refresh_share=0.5",
    "stc_cacher:tau=0.4,look_every=2,reference_dtype=model",
    "stc_cacher:tau=0,recompute_ratio=0.25,look_every=2,refresh_share=none",
    *(f"stc_cacher:tau={tau},look_every=2,budget={b}" for tau, b in ((0.35, 0.45), (0.45, 0.35), (0.5, 0.3))),
    *(f"stc_cacher:tau={tau},look_every=3,budget={b}" for tau, b in ((0.5, 0.25), (0.6, 0.2))),
)
LONG = ("full", "stc_published", "stc_cacher:tau=0.4,look_every=2,refresh_share=none")
FOOTAGE = (
    "stc_published",
    "stc_published:interval=none",
    *(f"stc_cacher:tau={tau},look_every=2" for tau in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
    *(f"stc_cacher:tau={tau},look_every=1" for tau in (0.1, 0.15, 0.2, 0.3, 0.4)),
    "stc_cacher:tau=0.2,look_every=2,refresh_share=none",
    "stc_cacher:tau=0.3,look_every=2,refresh_share=0.6",
    *(f"stc_cacher:budget={b}" for b in (0.48, 0.4, 0.3)),
)


# ----------------------------------------------------------------------------------------------------------- the work

_loaded: dict[str, VideoModel] = {}
"""The model of this process."""


def _model(given: argparse.Namespace) -> VideoModel:
    if given.model not in _loaded:
        torch.set_num_threads(1)
        # Float32 as written: TF32 would be an error of its own.
        torch.backends.cuda.matmul.allow_tf32 = False
        kind, _, name = given.model.partition(":")
        if kind == "random":
            torch.manual_seed(0)
            _loaded[given.model] = models.random_model(models.shape_of(name), "float32", given.device)
        else:
            _loaded[given.model] = models.load(given.model, dtype="float32", device=given.device)
    return _loaded[given.model]


def _asked(
    given: argparse.Namespace, encoder: Counted, seeds: Sequence[int], folder: str, begun: Sequence[StreamState] = ()
) -> dict[str, Any]:
    engine = Engine(_model(given), encoder=encoder, compressor=given.compressor, memory="full")
    encoder.begun.extend(begun)  # an engine makes a state or two of its own before any stream
    items = [with_frames(seed, given.split, folder, given.level) for seed in seeds]
    right: dict[str, dict[str, list[float]]] = {str(seed): {} for seed in seeds}
    owner = {item.video.id: str(seed) for item, seed in zip(items, seeds, strict=True)}
    for outcome in replay(engine, items, parallel=len(items)):
        found = [mark.value for mark in marks(outcome)]
        if outcome.failure or not found:
            raise RuntimeError(f"a question of {outcome.query.video} has no answer: {outcome.failure}")
        right[owner[outcome.query.video]].setdefault(outcome.query.task, []).extend(found)
    return {"right": right}


def answers(given: argparse.Namespace, variant: str, seeds: Sequence[int], folder: str) -> list[dict[str, Any]]:
    """Some clips under one variant."""
    tally = Tally()
    row = _asked(given, Counted(registry.make("encoder", variant), tally), seeds, folder)
    return [row | tally.summary()]


def long(given: argparse.Namespace, variant: str, seeds: Sequence[int], folder: str) -> list[dict[str, Any]]:
    """Some streams of clips one after another, of which the last is asked about."""
    model, method, tally = _model(given), registry.make("encoder", variant), Tally()
    encoder, states = Counted(method, tally, compare=False), [method.new_state() for _ in seeds]
    bins: list[list[float]] = [[] for _ in range(6)]
    before = [] if variant == "full" else _before(given, seeds[0])
    for place in range(len(before)):
        clips = [images_of(_before(given, seed)[place], given.split, folder, given.level) for seed in seeds]
        for number in range(CLIP_S):
            pixels = torch.stack(model.preprocess([np.ascontiguousarray(clip[number]) for clip in clips]))
            tower, hidden = model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels)
            out = encoder.encode(tower, hidden, states).hidden
            if number % 6 == 5:
                dense = Full().encode(tower, hidden, states).hidden
                off = (out - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
                bins[place * len(bins) // len(before)] += off.tolist()
    row = _asked(given, Counted(method, tally, compare=False), seeds, folder, states)
    errors = {"error_by_sixth": [float(np.mean(one)) for one in bins]} if before else {}
    return [row | tally.summary() | errors]


def _before(given: argparse.Namespace, seed: int) -> list[int]:
    """Clips that a stream shows before the last one: those of a pool, in an order of its own."""
    count, pool = max(6, round(given.minutes * 60 / CLIP_S)), 5 * given.clips
    return [given.first_seed + given.clips + (seed * 31 + 7 * n) % pool for n in range(count)]


def footage(given: argparse.Namespace, variant: str, files: Sequence[str], folder: str) -> list[dict[str, Any]]:
    """Video files under one variant."""
    model, rows = _model(given), []
    for file, fps in itertools.product(files, (1.0, 4.0)):
        encoder = Counted(registry.make("encoder", variant), Tally())
        state, at_rest = encoder.new_state(), file == "still"
        if at_rest and fps == 1.0:
            continue
        for image in still(given.footage) if at_rest else film(file, fps, given.seconds):
            pixels = torch.stack(model.preprocess([np.ascontiguousarray(image)]))
            encoder.encode(model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels), [state])
        rows.append({"clip": Path(file).stem, "fps": fps} | encoder.tally.summary())
    return rows


# ----------------------------------------------------------------------------------------------------- rows and tables


def one_task(given: argparse.Namespace, variant: str, part: Sequence[Any], folder: str) -> list[dict[str, Any]]:
    """Rows of one variant on some clips."""
    began = time.perf_counter()
    rows = {"answers": answers, "long": long, "footage": footage}[given.part](given, variant, part, folder)
    return [
        {"part": given.part, "variant": variant, "over": _over(given, part)}
        | row
        | {"seconds": round(time.perf_counter() - began, 1), "device": _device_name(given)}
        | {"versions": provenance.versions(), "commit": provenance.commit()}
        for row in rows
    ]


def _over(given: argparse.Namespace, part: Sequence[Any]) -> str:
    if given.part == "footage":
        return f"{given.model} " + "+".join(Path(one).stem for one in part)
    minutes = f" {given.minutes:g} min" if given.part == "long" else ""
    level = "" if given.level == "L0" else f" {given.level}"
    return f"{given.model} {given.compressor} {given.split} {part[0]}..{part[-1]}{level}{minutes}"


def _device_name(given: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{os.cpu_count()} CPU cores"


def run(given: argparse.Namespace) -> None:
    """All variants over all clips that the file has no row of yet."""
    out = Path(given.out)
    done = {(r["part"], r["variant"], r["over"]) for r in rows_of(out)}
    seeds = range(given.first_seed, given.first_seed + given.clips)
    parts: list[Sequence[Any]] = [seeds[first : first + given.chunk] for first in range(0, len(seeds), given.chunk)]
    if given.part == "footage":
        parts = [[file] for file in (*files_of(given.footage), "still")]
    tasks = [
        (variant, part)
        for variant, part in itertools.product(given.variants, parts)
        if (given.part, variant, _over(given, part)) not in done
    ]
    spawn, began = multiprocessing.get_context("spawn"), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.frames or scratch
        Path(folder).mkdir(parents=True, exist_ok=True)
        if given.part != "footage" and tasks:
            needed = {seed for _, part in tasks for seed in part}
            if given.part == "long":
                watching = {seed for variant, part in tasks for seed in part if variant != "full"}
                needed |= {other for seed in watching for other in _before(given, seed)}
            with ProcessPoolExecutor(given.renderers, spawn) as pool:
                jobs = [pool.submit(make_frames, seed, given.split, folder, given.level) for seed in sorted(needed)]
                for number, job in enumerate(as_completed(jobs), 1):
                    job.result()
                    _say(f"frames of clip {number} of {len(jobs)}", began, number == len(jobs))
        with ProcessPoolExecutor(given.workers, spawn) as pool, out.open("a") as file:
            jobs = [pool.submit(one_task, given, variant, part, folder) for variant, part in tasks]
            for number, job in enumerate(as_completed(jobs), 1):
                for row in job.result():
                    file.write(json.dumps(row) + "\n")
                file.flush()
                _say(f"task {number} of {len(jobs)}", began, number == len(jobs))
    show(Path(given.out))


def _say(what: str, began: float, last: bool) -> None:
    end = "\n" if last or not sys.stderr.isatty() else "\r"
    print(f"{what}, {time.perf_counter() - began:.0f} s", end=end, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("answers", "long", "footage", "show"))
    parser.add_argument("--out", required=True, help="rows, one JSON object a line; added to")
    parser.add_argument("--variants", nargs="+", help="encoders; a list for every part by default")
    parser.add_argument("--model", default="pocket", help="or random:NAME, the same with random weights (footage)")
    parser.add_argument("--level", choices=LEVEL_NAMES, default="L0", help="of the clips that are asked about")
    parser.add_argument("--compressor", default="identity", help="behind the encoder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", default="", help="sealed:NAME, for test clips that are opened once")
    parser.add_argument("--chunk", type=int, default=15, help="clips that one process watches side by side")
    parser.add_argument("--minutes", type=float, default=30.0, help="length of a long stream")
    parser.add_argument("--footage", default="", help="folder of video files")
    parser.add_argument("--seconds", type=float, default=30.0, help="of every video file")
    parser.add_argument("--frames", default="", help="folder that keeps the frames of clips for another run")
    parser.add_argument("--renderers", type=int, default=os.cpu_count(), help="processes that make frames")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the device")
    given = parser.parse_args()
    if given.seeds:
        given.first_seed, given.split = RunSettings(seeds=given.seeds).first_seed, "test"
    given.variants = given.variants or {"answers": VARIANTS, "long": LONG, "footage": FOOTAGE}.get(given.part, ())
    show(Path(given.out)) if given.part == "show" else run(given)


if __name__ == "__main__":
    main()
