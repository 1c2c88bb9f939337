"""Teach a vision tower to work under STC-Cacher: `python -m recipes.cache_aware --model FOLDER --videos FOLDER`.

The frozen tower is the teacher: its dense features of the same frames are the targets. The student is the same tower
with low-rank adapters in every linear map. It runs under the published Cacher with changing intervals and ratios, and
densely on the same frames, so that nothing is lost where nothing is saved. No labels, any video. What counts as near is
measured on what the language model gets, evenly or most where the teacher's tokens moved (`focus`), and, if asked for,
behind some layers of the frozen language model (`decoder_layers`), which tells what it looks at. The adapters are
merged, and the result is a checkpoint like the one that was given. The finding behind it: a pocket model that saw the
Cacher in training answers under it as without it, and loses nothing on dense frames (`docs/results.md`).
"""

import argparse
import copy
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

from onlooker.core.contracts import VisionTower
from onlooker.core.errors import InputError, ModelError, SourceError
from onlooker.encode._layer import run_layer
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.models._loading import load_network, read_config
from onlooker.models._pixels import Pixels
from onlooker.models.llava_onevision import Vision
from onlooker.world import LEVEL_NAMES, LEVELS, make_episode, rasterise, render_tables

VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts")
STATE = "cache_aware.pt"
SAVE_EVERY = 100
"""Steps from one state written to the next."""


@dataclass(frozen=True)
class AdaptSettings:
    """How a tower is adapted."""

    steps: int = 2000
    """Steps of the whole training, over all commands."""
    minutes: float = math.inf
    """Minutes of a command's training, at most; the rate has fallen to nothing by then."""
    frames: int = 8
    """Consecutive frames of one window."""
    windows: int = 4
    """Windows of a step, from different places."""
    fps: float = 2.0
    """Frames a second taken from the videos."""
    rank: int = 16
    """Rank of the adapters."""
    rate: float = 1e-3
    """Largest learning rate of the adapters."""
    intervals: tuple[int, ...] = (2, 4, 8)
    """Intervals of the Cacher, drawn for each step."""
    ratios: tuple[float, ...] = (0.15, 0.25, 0.40)
    """Shares of tokens recomputed, drawn for each step."""
    dense_weight: float = 1.0
    """Weight of staying the same on dense frames."""
    focus: float = 0.0
    """0: all tokens count the same; 1: each as much as the teacher's moved since the frame that is reused."""
    feature_weight: float = 1.0
    """Weight of the features themselves, beside what the language model makes of them."""
    decoder_layers: int = 0
    """Layers of the frozen language model behind each of which the two are compared as well."""
    seed: int = 0
    """Seed of everything drawn."""


class LowRank(nn.Module):
    """Adds a product of two thin matrices to a weight, unless it is switched off."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rank = min(rank, *weight.shape)
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], device=weight.device) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self.is_on = True

    def forward(self, weight: Tensor) -> Tensor:
        """`[rows, cols]` with the adapter added; it starts as nothing."""
        return weight + (self.up @ self.down).to(weight.dtype) if self.is_on else weight


class Student:
    """A vision tower with adapters, and what it was without them."""

    def __init__(self, network: Any, settings: AdaptSettings) -> None:
        for p in network.parameters():
            p.requires_grad_(False)
        self.vision, self.settings = Vision(network), settings
        self.decoder = first_layers(network.model.language_model, settings.decoder_layers)
        self.linears = [m for m in network.model.vision_tower.encoder.modules() if isinstance(m, nn.Linear)]
        torch.manual_seed(settings.seed)
        for linear in self.linears:
            parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, settings.rank))
        self.adapters: list[LowRank] = [linear.parametrizations["weight"][0] for linear in self.linears]

    def features(self, pixels: Tensor, encoder: Full | STCPublished, adapted: bool) -> Tensor:
        """What the language model gets, `[windows, frames, tokens, dim]`, of pixels `[windows, frames, 3, rows, cols]`.

        `adapted` switches the adapters on; without them nothing is learnt.
        """
        for adapter in self.adapters:
            adapter.is_on = adapted
        with torch.set_grad_enabled(adapted and torch.is_grad_enabled()), parametrize.cached():
            if isinstance(encoder, Full):
                states = [encoder.new_state() for _ in range(pixels.shape[0] * pixels.shape[1])]
                hidden = self.vision.embed_patches(pixels.flatten(0, 1))
                out = self.vision.project(encoder.encode(self.vision.tower, hidden, states).hidden)
                return out.unflatten(0, pixels.shape[:2])
            hidden = self.vision.embed_patches(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
            return self.vision.project(self._reusing(hidden, encoder).flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def _reusing(self, hidden: Tensor, encoder: STCPublished) -> Tensor:
        """The tower under the Cacher. Frames of an interval depend on its first alone: they are computed at once."""
        windows, frames = hidden.shape[:2]
        every = min(encoder.interval or frames, frames)
        whole = frames - frames % every
        parts = []
        for part, length in ((hidden[:, :whole], every), (hidden[:, whole:], frames % every)):
            if length:
                pieces = part.unflatten(1, (-1, length)).flatten(0, 1)
                parts.append(reusing(self.vision.tower, pieces, encoder).flatten(0, 1).unflatten(0, (windows, -1)))
        return torch.cat(parts, 1)

    def loss(self, pixels: Tensor, encoder: STCPublished) -> tuple[Tensor, Tensor]:
        """How far the student is from the dense teacher, as a share: (under the Cacher, on dense frames)."""
        with torch.no_grad():
            target = self.features(pixels, Full(), adapted=False)
            weight = moved(target, encoder.interval) ** self.settings.focus
            understood = self.understood(target)
        cached, dense = self.features(pixels, encoder, True), self.features(pixels, Full(), True)
        share = self.settings.feature_weight
        return (
            share * error(cached, target, weight) + self._misread(cached, understood),
            share * error(dense, target) + self._misread(dense, understood),
        )

    def _misread(self, features: Tensor, understood: Sequence[Tensor]) -> Tensor:
        """Mean error behind the layers of the language model; 0 without any."""
        errors = [error(one, other) for one, other in zip(self.understood(features), understood, strict=True)]
        return torch.stack(errors).mean() if errors else features.new_zeros(())

    def understood(self, features: Tensor) -> list[Tensor]:
        """What the first layers of the language model make of a window, `[windows, 1, frames * tokens, dim]` behind
        each."""
        if self.decoder is None:
            return []
        out = self.decoder(inputs_embeds=features.flatten(1, 2), use_cache=False, output_hidden_states=True)
        return [states[:, None] for states in out.hidden_states[1:]]

    def merge(self) -> None:
        """Make the adapters part of the weights."""
        for adapter in self.adapters:
            adapter.is_on = True
        for linear in self.linears:
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)


def reusing(tower: VisionTower, frames: Tensor, encoder: STCPublished) -> Tensor:
    """Patches of intervals of frames, `[intervals, frames, tokens, dim]`, through the tower under the published Cacher
    in its plain form: the first of each is computed whole and is the reference of the others. To the rounding what a
    stream computes frame after frame, without a copy of the reference for each."""
    first, rest, others = frames[:, 0], frames[:, 1:].flatten(0, 1), frames.shape[1] - 1
    count = encoder.recomputed_tokens(tower)

    def wide(reference: Tensor) -> Tensor:
        return reference[:, None].expand(-1, others, -1, -1).flatten(0, 1)

    for layer in tower.layers:
        done = run_layer(layer, first)
        if others:
            normed = layer.norm(rest)
            keys = layer.keys(normed)
            alike = torch.cosine_similarity(keys.detach().float(), wide(done.keys).detach().float(), dim=-1)
            index = alike.topk(count, dim=1, largest=False).indices
            rows = index[..., None].expand(-1, -1, rest.shape[-1])
            fresh = normed.gather(1, rows)
            values = wide(done.values).scatter(1, rows, layer.values(fresh))
            middle = rest.gather(1, rows) + layer.out(layer.attend(layer.queries(fresh), keys, values, index))
            rest = (rest + wide(done.output - first)).scatter(1, rows, middle + layer.mlp(middle))
        first = done.output
    return torch.cat([first[:, None], rest.unflatten(0, (-1, others))], 1) if others else first[:, None]


def first_layers(decoder: Any, count: int) -> Any:
    """The language model with only its first `count` layers, sharing their weights; None for 0."""
    if not count:
        return None
    short = copy.copy(decoder)
    short._modules = dict(decoder._modules) | {"layers": decoder.layers[:count]}
    return short


def moved(target: Tensor, interval: int | None) -> Tensor:
    """By how much each of the teacher's tokens moved since its frame's reference, as a multiple of the mean, `[windows,
    frames, tokens]`; 1 for the frames that are references."""
    place = torch.arange(target.shape[1], device=target.device)
    reference = place - place % interval if interval else torch.zeros_like(place)
    away = (target - target[:, reference]).float().pow(2).mean(-1)
    fresh = place != reference
    mean = away[:, fresh].mean().clamp(min=1e-12)
    return torch.where(fresh[:, None], away / mean, torch.ones_like(away))


def error(features: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared distance to the target as a share of the target's variance over tokens; `weight` is that of each token.
    0 where there are no tokens."""
    features, target = features.float(), target.float()
    if not target.numel():
        return target.new_zeros(())
    spread = (target - target.mean((0, 1, 2), keepdim=True)).pow(2).mean()
    away = (features - target).pow(2).mean(-1)
    return (away if weight is None else weight * away).mean() / spread.clamp(min=1e-12)


# --------------------------------------------------------------------------------------------------------- videos


def find_videos(folder: Path) -> list[Path]:
    """Video files below a folder, sorted. Raises `InputError` when there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS) if folder.is_dir() else []
    if not found:
        given = f"{folder} ({'no folder' if not folder.is_dir() else 'no file'})"
        raise InputError("there are no videos to learn from", given=given, do=f"files: {', '.join(VIDEO_ENDINGS)}")
    return found


def windows(videos: Sequence[Path], settings: AdaptSettings, rng: random.Random) -> Iterator[list[np.ndarray]]:
    """Windows of consecutive frames without end: each video in turn, in another order every round.

    Files that cannot be read are named once and left out. Raises `InputError` when none gives a window.
    """
    from onlooker.video import open_video

    bad: set[Path] = set()
    while True:
        found = 0
        for path in rng.sample(list(videos), len(videos)):
            if path in bad:
                continue
            frames: list[np.ndarray] = []
            skip = rng.randrange(settings.frames)
            try:
                for frame in open_video(str(path), fps=settings.fps):
                    if skip:
                        skip -= 1
                        continue
                    frames.append(frame.image)
                    if len(frames) == settings.frames:
                        found += 1
                        yield frames
                        frames = []
            except (InputError, SourceError) as problem:
                print(f"left out: {path}: {problem}", flush=True)
                bad.add(path)
        if not found:
            given = f"{len(videos)} files, {settings.frames} frames at {settings.fps} fps"
            raise InputError("no video is long enough for a window", given=given, do="fewer --frames or more --fps")


def mixed(source: Iterator[list[np.ndarray]], settings: AdaptSettings, rng: random.Random) -> Iterator[list]:
    """Batches of windows drawn from a small store, so that one step sees several videos."""
    store: list[list[np.ndarray]] = []
    most = 4 * settings.windows
    for window in source:
        store.append(window)
        if len(store) >= most:
            yield [store.pop(rng.randrange(len(store))) for _ in range(settings.windows)]


class WorldWindows(Dataset):
    """Steps' windows of Pocket World's training clips, without end, each from its number alone."""

    def __init__(self, levels: Sequence[str], settings: AdaptSettings) -> None:
        self.levels, self.settings = levels, settings

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """What the rasteriser draws the windows of a step from."""
        rng = random.Random(f"windows/{self.settings.seed}/{number}")
        span = (self.settings.frames - 1) / self.settings.fps
        episodes, times = [], []
        for _ in range(self.settings.windows):
            level = rng.choice(self.levels)
            seconds = 24.0 if level == "L0" else LEVELS[level].duration_s
            episodes.append(make_episode(rng.randrange(1_000_000), "train", seconds, level=level))
            start = rng.uniform(0.0, seconds - 0.1 - span)
            times.append([start + frame / self.settings.fps for frame in range(self.settings.frames)])
        return render_tables(episodes, np.array(times))


def world(levels: Sequence[str], settings: AdaptSettings, device: torch.device, workers: int = 0) -> Iterator[Tensor]:
    """Batches of windows of Pocket World's training clips, drawn on the device: `[windows, frames, 3, rows, cols]`.

    For models that know that world only, which are 128 pixels wide and take pixels in -1..1. `workers` processes make
    the clips; they start at once, so call this before the device is touched.
    """
    loader = DataLoader(
        WorldWindows(levels, settings), batch_size=None, sampler=itertools.count(), num_workers=workers,
        multiprocessing_context="fork" if workers else None, persistent_workers=bool(workers),
    )  # fmt: skip
    made = iter(loader)
    return (
        rasterise({name: table.to(device) for name, table in tables.items()}).images.permute(0, 1, 4, 2, 3).float()
        / 127.5
        - 1
        for tables in made
    )


# ------------------------------------------------------------------------------------------------------- the run


def adapt(student: Student, batches: Iterator[Tensor], out: Path, *, log_every: int = 20) -> list[dict]:
    """Train the adapters; lines of history. A state is written every `SAVE_EVERY` steps, and gone on from."""
    out.mkdir(parents=True, exist_ok=True)
    settings, history = student.settings, []
    parameters = [p for adapter in student.adapters for p in adapter.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0)
    step, path = 0, out / STATE
    rng = random.Random(settings.seed)
    if path.exists():
        state = torch.load(path, map_location=parameters[0].device, weights_only=False)
        if state["settings"] != asdict(settings):
            do = "give the same settings, or another --out"
            raise InputError("the folder holds a training with other settings", given=str(path), do=do)
        for p, saved in zip(parameters, state["adapters"], strict=True):
            p.data.copy_(saved)
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        rng.setstate(state["random"])

    def save() -> None:
        state = {"settings": asdict(settings), "adapters": [p.data for p in parameters], "step": step,
                 "optimiser": optimiser.state_dict(), "random": rng.getstate()}  # fmt: skip
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    began = time.perf_counter()
    while True:
        share = max(step / settings.steps, (time.perf_counter() - began) / 60 / settings.minutes)
        if share >= 1.0:
            break
        pixels = next(batches)
        encoder = STCPublished(interval=rng.choice(settings.intervals), recompute_ratio=rng.choice(settings.ratios))
        cached, dense = student.loss(pixels, encoder)
        (cached + settings.dense_weight * dense).backward()
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 20) * max(0.02, 1.0 - share)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % log_every == 0 or step == settings.steps:
            line = {"step": step, "cached": round(cached.item(), 5), "dense": round(dense.item(), 6),
                    "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip
            history.append(line)
            print(json.dumps(line), flush=True)
        if step % SAVE_EVERY == 0:
            save()
    save()
    return history


@torch.no_grad()
def measure(student: Student, pixels: Tensor, interval: int = 4, ratio: float = 0.25) -> dict[str, float]:
    """Errors as shares of the teacher's variance: the Cacher on the given tower and on the adapted one, and dense."""
    target = student.features(pixels, Full(), adapted=False)
    cacher = STCPublished(interval=interval, recompute_ratio=ratio)
    before, after = (error(student.features(pixels, cacher, on), target).item() for on in (False, True))
    dense = error(student.features(pixels, Full(), True), target).item()
    return {"cacher_before": round(before, 5), "cacher_after": round(after, 5), "dense_after": round(dense, 6)}


def write_checkpoint(network: Any, student: Student, source: Path, out: Path) -> None:
    """The merged checkpoint, with every file beside the weights that the given one has."""
    student.merge()
    network.config.onlooker = (getattr(network.config, "onlooker", None) or {}) | {
        "cache_aware": asdict(student.settings)
    }
    network.save_pretrained(out)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model") and not (out / path.name).exists():
            shutil.copy2(path, out / path.name)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    standard = AdaptSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a LLaVA-OneVision checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", type=Path, help="folder of videos, searched below")
    source.add_argument("--world", nargs="+", choices=LEVEL_NAMES, help="levels of Pocket World, for a pocket model")
    parser.add_argument(
        "--out", type=Path, default=Path("out/cache_aware"), help="state while training, checkpoint after"
    )
    parser.add_argument("--steps", type=int, default=standard.steps, help="steps, all commands together")
    parser.add_argument("--minutes", type=float, default=standard.minutes, help="minutes of this command, at most")
    parser.add_argument("--windows", type=int, default=standard.windows, help="windows of a step")
    parser.add_argument("--frames", type=int, default=standard.frames, help="consecutive frames of a window")
    parser.add_argument("--fps", type=float, default=standard.fps, help="frames a second taken from the videos")
    parser.add_argument("--rank", type=int, default=standard.rank, help="rank of the adapters")
    parser.add_argument("--rate", type=float, default=standard.rate, help="largest learning rate")
    parser.add_argument("--intervals", type=int, nargs="+", default=standard.intervals, help="intervals to learn under")
    parser.add_argument("--ratios", type=float, nargs="+", default=standard.ratios, help="recomputed shares, likewise")
    parser.add_argument("--focus", type=float, default=standard.focus, help="1: tokens count by how much they moved")
    parser.add_argument("--feature-weight", type=float, default=standard.feature_weight, help="of the features")
    parser.add_argument(
        "--decoder-layers", type=int, default=0, help="layers of the language model behind which to compare as well"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that make clips of --world")
    parser.add_argument("--seed", type=int, default=standard.seed, help="seed of everything drawn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the tower")
    given = parser.parse_args(argv)
    settings = AdaptSettings(
        steps=given.steps, minutes=given.minutes, frames=given.frames, fps=given.fps, windows=given.windows,
        rank=given.rank, rate=given.rate, seed=given.seed, intervals=tuple(given.intervals),
        ratios=tuple(given.ratios), focus=given.focus,
        feature_weight=given.feature_weight, decoder_layers=given.decoder_layers,
    )  # fmt: skip
    try:
        torch.set_float32_matmul_precision("high")
        run(given.model, given.videos or given.world, given.out, settings, getattr(torch, given.dtype), given.workers)
    except (InputError, ModelError) as problem:
        raise SystemExit(f"error: {problem}") from problem


def run(
    model: Path, source: Path | Sequence[str], out: Path, settings: AdaptSettings, dtype: torch.dtype = torch.float32,
    workers: int = 0,
) -> dict:  # fmt: skip
    """Adapt the checkpoint in a folder, write `out`, and say what it brought.

    `source` is a folder of videos, or names of Pocket World's levels, whose clips `workers` processes make.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    kind = read_config(model)["model_type"]
    if kind != "llava_onevision":
        raise ModelError("this recipe adapts LLaVA-OneVision checkpoints", given=kind, do="give such a folder")
    rng = random.Random(f"windows/{settings.seed}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(source, Path):
        batches, about = of_videos(model, source, settings, rng, device), f"videos of {source}"
    else:
        batches, about = world(source, settings, device, workers), f"Pocket World, {', '.join(source)}"
    network = load_network(LlavaOnevisionForConditionalGeneration, model, dtype, device)
    student = Student(network, settings)
    out.mkdir(parents=True, exist_ok=True)
    batches = (batch.to(dtype) for batch in batches)
    held_out = next(batches)
    adapt(student, batches, out)
    found = measure(student, held_out)
    print(json.dumps(found), flush=True)
    write_checkpoint(network, student, model, out)
    print(f"{out}: adapted to STC-Cacher, {about}, {settings.steps} steps")
    return found


def of_videos(
    model: Path, folder: Path, settings: AdaptSettings, rng: random.Random, device: torch.device
) -> Iterator[Tensor]:
    """Batches of windows of a folder's videos, `[windows, frames, 3, rows, cols]`, as the checkpoint wants them."""
    files, pixels = find_videos(folder), Pixels.from_folder(model)
    return (
        torch.stack([torch.stack([*pixels.prepare(window, device)]) for window in batch])
        for batch in mixed(windows(files, settings, rng), settings, rng)
    )


if __name__ == "__main__":
    main()
