"""Forms of the Cacher beside each other: answers, error of the tower, arithmetic; on clips, long streams and footage.

    python -m benchmarks.cacher_table answers --clips 60 --first-seed 900000 --device cuda --workers 8 --out rows.jsonl
    python -m benchmarks.cacher_table long --minutes 30 --clips 24 --device cuda --workers 4 --out rows.jsonl
    python -m benchmarks.cacher_table footage --footage FOLDER --device cuda --out rows.jsonl
    python -m benchmarks.cacher_table show --out rows.jsonl

*answers*: Pocket World clips of 24 s, eight questions each, full memory, nothing but the encoder differs. *long*:
streams of clips one after another for so many minutes, the last of which is asked about; the encoder's state comes from
the first. *footage*: relative error of the tower's output against dense on video files (or .npz with `frames`, uint8
`[frames, rows, cols, 3]`, and `times_s`) at 1 and 4 frames per second, and on a still second of a noisy camera.

Everything is computed in float32. Arithmetic is counted for SigLIP-so400m at 384 pixels, as a share of dense: of all
frames, and of all but the first of each stream. Rows are added to the file as they come; what it has is not done again.
Frames are made in processes of their own; `--workers` processes share the device.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker import models
from onlooker.core import registry
from onlooker.core.contracts import Encoded, EncoderAccelerator, VideoModel, VisionTower
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.encode._cost import dense_flop, rows_flop, selective_flop
from onlooker.encode.full import Full
from onlooker.engine import Engine
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.score import marks
from onlooker.evals.settings import RunSettings
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import TASKS, make_episode

CLIP_S = 24
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
SO400M = VisionTower([], 729, 1152, mlp_dim=4304)
NOISE = 2.0
"""Standard deviation of a still camera's noise, in 256 grey levels."""


@dataclass
class Tally:
    """What an encoder spent and how far off it was, frame by frame."""

    spent: list[tuple[bool, float]] = field(default_factory=list)
    """Is it a stream's first frame, and its arithmetic as a share of dense."""
    errors: list[float] = field(default_factory=list)
    """Relative error of the tower's output, of frames after the first."""
    refreshed: int = 0

    def summary(self) -> dict[str, float]:
        """Means."""
        later = [share for first, share in self.spent if not first]
        return {
            "arithmetic": float(np.mean([share for _, share in self.spent])),
            "arithmetic_after_first": float(np.mean(later)) if later else 1.0,
            "error": float(np.mean(self.errors)) if self.errors else 0.0,
            "refreshed": self.refreshed / max(1, len(self.spent)),
            "frames": len(self.spent),
        }


@dataclass(frozen=True)
class Counted(EncoderAccelerator):
    """An encoder, with a tally of its work; as long as there are any, streams begin with the states in `begun`."""

    method: EncoderAccelerator
    tally: Tally
    begun: list[StreamState] = field(default_factory=list)
    compare: bool = True

    def new_state(self) -> StreamState:
        """The method's own."""
        return self.begun.pop(0) if self.begun else self.method.new_state()

    @torch.no_grad()
    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """As the method does."""
        new = [_is_new(state) for state in states]
        encoded = self.method.encode(tower, hidden, states)
        shares = [
            1.0 if flag else self._share(tower, state) for flag, state in zip(encoded.refreshed, states, strict=True)
        ]
        self.tally.spent += list(zip(new, shares, strict=True))
        self.tally.refreshed += sum(encoded.refreshed)
        if self.compare:
            dense = Full().encode(tower, hidden, states).hidden
            off = (encoded.hidden - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
            self.tally.errors += [error for error, first in zip(off.tolist(), new, strict=True) if not first]
        return encoded

    def _share(self, tower: VisionTower, state: Any) -> float:
        """Of a frame that was not computed whole, at the sizes of SigLIP-so400m."""
        work = getattr(state, "work", None)
        if work is not None:
            return rows_flop(SO400M, *(share * SO400M.num_tokens for share in work.tolist())) / dense_flop(SO400M)
        count: Any = getattr(self.method, "recompute_ratio", 1.0)
        return selective_flop(SO400M, int(count * SO400M.num_tokens)) / dense_flop(SO400M)


def _is_new(state: Any) -> bool:
    return not getattr(state, "age", 1)


# ------------------------------------------------------------------------------------------------ frames and questions


def clip_of(seed: int, split: Any) -> Item:
    """A clip of 24 seconds with eight questions, all categories in turn."""
    names, episode = list(TASKS), make_episode(seed, split, duration_s=float(CLIP_S))
    asked = by_category(episode, [names[(seed * 8 + k) % len(names)] for k in range(8)])
    return as_item(episode, asked, "pocketworld")


def make_frames(seed: int, split: Any, folder: str) -> int:
    """Put the frames of a clip into the folder."""
    path = Path(folder) / f"{split}_{seed}.npy"
    if not path.exists():
        images = np.stack([frame.image for frame in clip_of(seed, split).open(1.0)])
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, images)
        unfinished.replace(path)
    return seed


def images_of(seed: int, split: str, folder: str) -> np.ndarray:
    """The frames of a clip, uint8 `[frames, rows, cols, 3]`."""
    return np.load(Path(folder) / f"{split}_{seed}.npy", mmap_mode="r")


def with_frames(seed: int, split: str, folder: str) -> Item:
    """A clip whose frames are read from the folder."""

    def frames(fps: float) -> Iterator[Frame]:
        assert fps == 1.0
        for number, image in enumerate(images_of(seed, split, folder)):
            yield Frame(np.ascontiguousarray(image), float(number))

    item = clip_of(seed, split)
    return dataclasses.replace(item, open=frames, cover=None)


# ----------------------------------------------------------------------------------------------------------- the work

_loaded: dict[str, VideoModel] = {}
"""The model of this process."""


def _model(given: argparse.Namespace) -> VideoModel:
    if given.model not in _loaded:
        torch.set_num_threads(1)
        # Float32 as written: TF32 would be an error of its own.
        torch.backends.cuda.matmul.allow_tf32 = False
        _loaded[given.model] = models.load(given.model, dtype="float32", device=given.device)
    return _loaded[given.model]


def _asked(
    given: argparse.Namespace, encoder: Counted, seeds: Sequence[int], folder: str, begun: Sequence[StreamState] = ()
) -> dict[str, Any]:
    engine = Engine(_model(given), encoder=encoder, compressor=given.compressor, memory="full")
    encoder.begun.extend(begun)  # an engine makes a state or two of its own before any stream
    items = [with_frames(seed, given.split, folder) for seed in seeds]
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
    before = _before(given, seeds[0])
    for place in range(len(before)):
        clips = [images_of(_before(given, seed)[place], given.split, folder) for seed in seeds]
        for number in range(CLIP_S):
            pixels = torch.stack(model.preprocess([np.ascontiguousarray(clip[number]) for clip in clips]))
            tower, hidden = model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels)
            out = encoder.encode(tower, hidden, states).hidden
            if number % 6 == 5:
                dense = Full().encode(tower, hidden, states).hidden
                off = (out - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
                bins[place * len(bins) // len(before)] += off.tolist()
    row = _asked(given, Counted(method, tally, compare=False), seeds, folder, states)
    return [row | tally.summary() | {"error_by_sixth": [float(np.mean(one)) for one in bins]}]


def _before(given: argparse.Namespace, seed: int) -> list[int]:
    """Clips that a stream shows before the last one: those of a pool, in an order of its own."""
    count, pool = max(6, round(given.minutes * 60 / CLIP_S)), 5 * given.clips
    return [given.first_seed + given.clips + (seed * 31 + 7 * n) % pool for n in range(count)]


def footage(given: argparse.Namespace, variant: str, files: Sequence[str], folder: str) -> list[dict[str, Any]]:
    """Video files under one variant."""
    model, rows = _model(given), []
    for file, fps in itertools.product(files, (1.0, 4.0)):
        encoder = Counted(registry.make("encoder", variant), Tally())
        state, still = encoder.new_state(), file == "still"
        if still and fps == 1.0:
            continue
        for image in _still(given.footage) if still else _film(file, fps, given.seconds):
            pixels = torch.stack(model.preprocess([np.ascontiguousarray(image)]))
            encoder.encode(model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels), [state])
        rows.append({"clip": Path(file).stem, "fps": fps} | encoder.tally.summary())
    return rows


def _film(file: str, fps: float, seconds: float) -> Iterator[np.ndarray]:
    if file.endswith(".npz"):
        held = np.load(file)
        due = 0.0
        for image, time_s in zip(held["frames"], held["times_s"], strict=True):
            if time_s >= due - 1e-3 and time_s <= seconds:
                due += 1 / fps
                yield image
        return
    from onlooker.video import open_video

    with open_video(file, fps=fps, end_s=seconds) as video:
        yield from (frame.image for frame in video)


def _still(folder: str) -> Iterator[np.ndarray]:
    """Two seconds of one picture, each frame with noise of its own."""
    first = next(_film(_files(folder)[0], 1.0, 1.0)).astype(np.float32)
    random = np.random.default_rng(0)
    for _ in range(8):
        yield (first + random.normal(0, NOISE, first.shape)).clip(0, 255).astype(np.uint8)


def _files(folder: str) -> list[str]:
    found = sorted(str(p) for p in Path(folder).iterdir() if p.suffix in (".npz", ".mp4", ".avi", ".mkv", ".webm"))
    if not found:
        raise SystemExit(f"no video files in {folder}")
    return found


# ----------------------------------------------------------------------------------------------------- rows and tables


def one_task(given: argparse.Namespace, variant: str, part: Sequence[Any], folder: str) -> list[dict[str, Any]]:
    """Rows of one variant on some clips."""
    began = time.perf_counter()
    rows = {"answers": answers, "long": long, "footage": footage}[given.part](given, variant, part, folder)
    return [
        {"part": given.part, "variant": variant, "over": _over(given, part)}
        | row
        | {"seconds": round(time.perf_counter() - began, 1), "device": _device_name(given)}
        for row in rows
    ]


def _over(given: argparse.Namespace, part: Sequence[Any]) -> str:
    if given.part == "footage":
        return f"{given.model} " + "+".join(Path(one).stem for one in part)
    minutes = f" {given.minutes:g} min" if given.part == "long" else ""
    return f"{given.model} {given.compressor} {given.split} {part[0]}..{part[-1]}{minutes}"


def _device_name(given: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{os.cpu_count()} CPU cores"


def run(given: argparse.Namespace) -> None:
    """All variants over all clips that the file has no row of yet."""
    out = Path(given.out)
    done = {(r["part"], r["variant"], r["over"]) for r in _rows(out)}
    seeds = range(given.first_seed, given.first_seed + given.clips)
    parts: list[Sequence[Any]] = [seeds[first : first + given.chunk] for first in range(0, len(seeds), given.chunk)]
    if given.part == "footage":
        parts = [[file] for file in (*_files(given.footage), "still")]
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
                needed |= {other for seed in set(needed) for other in _before(given, seed)}
            with ProcessPoolExecutor(given.renderers, spawn) as pool:
                jobs = [pool.submit(make_frames, seed, given.split, folder) for seed in sorted(needed)]
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
    show(given)


def _say(what: str, began: float, last: bool) -> None:
    end = "\n" if last or not sys.stderr.isatty() else "\r"
    print(f"{what}, {time.perf_counter() - began:.0f} s", end=end, file=sys.stderr, flush=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def show(given: argparse.Namespace) -> None:
    """Tables of what the file has."""
    rows = _rows(Path(given.out))
    for part in ("answers", "long"):
        mine = [row for row in rows if row["part"] == part]
        for over in sorted({_family(row) for row in mine}):
            print(f"\n{part}: {over}\n")
            print("| variant | arithmetic | after the first | refreshed | error | right | minus dense | worst tasks |")
            print("|---|--:|--:|--:|--:|---|---|---|")
            _show_answers([row for row in mine if _family(row) == over])
    films = [row for row in rows if row["part"] == "footage"]
    if films:
        print("\nfootage: error against dense (arithmetic)\n")
        columns = sorted({(row["clip"], row["fps"]) for row in films})
        print("| variant | " + " | ".join(f"{clip} {fps:g}" for clip, fps in columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for variant in dict.fromkeys(row["variant"] for row in films):
            cells = {(r["clip"], r["fps"]): r for r in films if r["variant"] == variant}
            texts = [f"{cells[c]['error']:.3f} ({cells[c]['arithmetic']:.2f})" if c in cells else "" for c in columns]
            print(f"| {variant} | " + " | ".join(texts) + " |")


def _family(row: dict[str, Any]) -> str:
    return " ".join(word for word in row["over"].split() if ".." not in word)


def _show_answers(rows: list[dict[str, Any]]) -> None:
    right: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        right.setdefault(row["variant"], {}).update(row["right"])
    dense = right.get("full", {})
    for variant, clips in sorted(right.items(), key=lambda one: -_mean_of(rows, one[0], "arithmetic")):
        marked = {clip: [v for task in tasks.values() for v in task] for clip, tasks in clips.items()}
        whole = _interval([np.array(v) for v in marked.values()])
        both = [clip for clip in marked if clip in dense]
        gaps = [np.array(marked[c]) - np.array([v for task in dense[c].values() for v in task]) for c in both]
        gap = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * v for v in _interval(gaps))) if gaps else ""
        tasks: dict[str, list[float]] = {}
        for clip in clips.values():
            for task, values in clip.items():
                tasks.setdefault(task, []).extend(values)
        worst = sorted((float(np.mean(v)), task) for task, v in tasks.items())[:3]
        means = [
            _mean_of(rows, variant, name) for name in ("arithmetic", "arithmetic_after_first", "refreshed", "error")
        ]
        print(
            f"| {variant} | " + " | ".join(f"{value:.3f}" for value in means)
            + f" | {whole[0]:.3f} ({whole[1]:.3f} to {whole[2]:.3f}), {len(clips)} clips | {gap} | "
            + ", ".join(f"{task} {value:.2f}" for value, task in worst) + " |"
        )  # fmt: skip


def _mean_of(rows: Sequence[dict[str, Any]], variant: str, name: str) -> float:
    mine = [row for row in rows if row["variant"] == variant]
    return float(np.average([row[name] for row in mine], weights=[row["frames"] for row in mine]))


def _interval(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean and the middle 95 % of it when whole clips are drawn anew."""
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (2000, len(groups)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("answers", "long", "footage", "show"))
    parser.add_argument("--out", required=True, help="rows, one JSON object a line; added to")
    parser.add_argument("--variants", nargs="+", help="encoders; a list for every part by default")
    parser.add_argument("--model", default="pocket")
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
    show(given) if given.part == "show" else run(given)


if __name__ == "__main__":
    main()
