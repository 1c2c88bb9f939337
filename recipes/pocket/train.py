"""Train the pocket models: `python -m recipes.pocket.train --branch trunk --minutes 8 --out out/pocket`."""

import argparse
import contextlib
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.world import change_frames, patch_labels, rasterise
from onlooker.world.raster import draw_chunk
from recipes.pocket import augment
from recipes.pocket.data import SMOKE, TASK_NAMES, DataSettings, Feed, make_set
from recipes.pocket.evaluate import LABEL_SIZES as LABELS
from recipes.pocket.evaluate import evaluate
from recipes.pocket.model import TINY, Pocket, PocketSizes, Stream, count_parameters
from recipes.pocket.optimise import Optimiser
from recipes.pocket.select import choose_tokens, draw_counts
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder

BRANCHES = ("trunk", "pocket", "aware")


@dataclass(frozen=True)
class TrainSettings:
    """How one branch is trained."""

    branch: str = "trunk"
    """trunk: from scratch, dense; pocket and aware: from the trunk, to the end of the learning rate."""
    minutes: float = 8.0
    """Training time of this branch, all of it; what earlier commands used is taken off."""
    steps: int | None = None
    """Train so many steps instead."""
    rate: float = 2e-3
    """Largest learning rate."""
    warm_share: float = 0.02
    """Share of the trunk in which the learning rate rises."""
    eyes_share: float = 0.08
    """Share of the trunk in which only the tower learns, from patch labels."""
    label_weight: float = 0.2
    """Weight of the patch labels later."""
    stream_weight: float = 0.1
    """Weight of what the decoder's stream tokens tell of their place and of when things came."""
    drop_from: float = 0.4
    """Share of the trunk after which visual tokens are dropped."""
    dense_share: float = 0.25
    """Share of batches that keep all tokens, once tokens are dropped."""
    pruner_share: tuple[float, float] = (0.2, 0.6)
    """Share of clips whose tokens STC-Pruner chooses, once tokens are dropped: elsewhere, and in the aware branch."""
    cached_share: float = 0.7
    """Share of batches of the aware branch that STC-Cacher encodes."""
    hide_share: float = 0.25
    """Share of questions that cannot look at some of the older frames they do not need."""
    seed: int = 0
    """Seed of the weights and of everything drawn in a step."""


@dataclass
class Progress:
    """How far a branch is."""

    step: int = 0
    seconds: float = 0.0
    next_batch: int = 0

    def share(self, settings: TrainSettings) -> float:
        """0..1 of the branch."""
        if settings.steps is not None:
            return min(1.0, self.step / settings.steps)
        return min(1.0, self.seconds / (60 * settings.minutes))


@dataclass
class Losses:
    """What one step gave; tensors stay on the device until they are read."""

    total: Tensor
    labels: Tensor
    stream: Tensor | None = None
    answers: Tensor | None = None
    right: Tensor | None = None
    """Correct answers by task, float `[tasks]`."""
    asked: Tensor | None = None
    """Questions by task, float `[tasks]`."""


@dataclass
class Clock:
    """Seconds spent in each part of a step; measured only in a benchmark, because it stops the queue."""

    active: bool = False
    spent: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        begin = time.perf_counter()
        yield
        if self.active:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begin


class Trainer:
    """The model, its optimiser and everything drawn at random in a step."""

    def __init__(self, settings: TrainSettings, sizes: PocketSizes, device: torch.device, *, compiled: bool) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, device
        self.encoder = Encoder()
        self.model = Pocket(sizes, self.encoder, MAX_VOCABULARY, tuple(LABELS.values())).to(device)
        self.optimiser = Optimiser(self.model.named_parameters())
        self.progress = Progress()
        self.random = random.Random(f"{settings.branch}/{settings.seed}")
        # On the device: a copy from the host in the middle of a step would stop the queue.
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.clock = Clock()
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.draw, self.spoil = draw_chunk, augment.spoil
        if compiled:
            self.model.compile_layers()
            self.draw, self.spoil = torch.compile(draw_chunk, dynamic=False), torch.compile(augment.spoil)

    # ------------------------------------------------------------------------------------------------- one step

    def step(self, frames: int, arrays: dict[str, np.ndarray]) -> Losses:
        """One step on a batch."""
        share = self.progress.share(self.settings)
        with self.clock.part("copy"):
            batch = {name: self._copy(array) for name, array in arrays.items()}
        with self.clock.part("render"):
            pixels, labels = self.render(batch)
        with self.clock.part("forward"):
            losses = self.losses(batch, pixels, labels, frames, share)
        with self.clock.part("backward"):
            losses.total.backward()
        with self.clock.part("optimise"):
            self.optimiser.step(self.rate(share))
        self.progress.step += 1
        return losses

    def _copy(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def rate(self, share: float) -> float:
        """Learning rate: the trunk rises and stays, a branch falls to nothing."""
        settings = self.settings
        if settings.branch == "trunk":
            return settings.rate * min(1.0, 0.02 + share / max(settings.warm_share, 1e-9))
        return settings.rate * max(0.01, 1.0 - share)

    @torch.no_grad()
    def render(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels `[clips, frames, 3, rows, cols]` and patch labels of a batch."""
        tables = {name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")}
        side, patch = self.model.sizes.image, self.model.sizes.patch
        clips, frames = tables["x"].shape[:2]
        raster = rasterise(tables, side, side, chunk_frames=clips * frames, draw=self.draw)
        labels = patch_labels(tables, raster.owner, patch) | change_frames(tables, self.device)
        strengths = augment.draw_strengths(clips, self.generator).repeat_interleave(frames, 0)
        # Frames of all clips in one row: the same shape in every step, so that one compiled graph serves all.
        pixels = self.spoil(raster.images.flatten(0, 1), strengths).to(self.dtype)
        return pixels.unflatten(0, (clips, frames)), labels

    def losses(
        self, batch: dict[str, Tensor], pixels: Tensor, labels: dict[str, Tensor], frames: int, share: float
    ) -> Losses:
        """The losses of a batch."""
        settings, model = self.settings, self.model
        clips = len(pixels)
        trunk = settings.branch == "trunk"
        only_eyes = trunk and share < settings.eyes_share
        if settings.branch == "aware" and self.random.random() < settings.cached_share:
            interval = self.random.choice((2, 4, 4, 8, 8, 0))
            hidden = model.encode_cached(pixels, interval, self.random.choice((0.15, 0.25, 0.40)))
        else:
            hidden = model.encode(pixels.flatten(0, 1)).unflatten(0, (clips, frames))
        label_loss = self._label_loss(hidden, labels)
        if only_eyes:
            return Losses(label_loss, label_loss.detach())

        features = model.project(hidden.flatten(0, 1)).unflatten(0, (clips, frames))
        tokens = features.shape[2]
        most = tokens
        if (not trunk or share >= settings.drop_from) and self.random.random() >= settings.dense_share:
            most = max(1, round(tokens * self.random.choice((0.75, 0.5, 0.3, 0.3, 0.19))))
        counts = draw_counts(clips, frames, most, tokens, self.generator)
        slot, thing = self._pooled_slots(labels["slot"])
        share = settings.pruner_share[settings.branch == "aware"]
        keep = choose_tokens(features.detach(), counts, thing, self.generator, share)
        shown = torch.ones(clips, frames, dtype=torch.bool, device=self.device)
        length = model.stream_length(frames, most)
        stream = model.pack(features, keep, batch["clock"].long(), shown, length)
        ids, asked, rows = batch["ids"].long(), batch["asked"].long(), batch["rows"].long()
        reading = model.read(stream, ids, asked, self._hidden_frames(batch["needed"]))
        stream_loss = self._stream_loss(reading.watched, stream, labels, slot, thing, batch["clock"])
        states = reading.answered
        states = states.gather(2, rows[..., None].expand(-1, -1, -1, states.shape[-1]))
        scores, targets = model.logits(states), batch["targets"].long()
        each = F.cross_entropy(scores.flatten(0, 2), targets.flatten(), ignore_index=-100, reduction="none")
        # Every question weighs the same, however many tokens its answer has.
        real = targets >= 0
        each = each.view(targets.shape).sum(2) / real.sum(2).clamp(min=1)
        valid = batch["task"] >= 0
        answer_loss = each.sum() / valid.sum().clamp(min=1)
        with torch.no_grad():
            hit = (((scores.argmax(-1) == targets) | ~real).all(2) & valid).float()
            task = batch["task"].long().clamp(min=0)
            zero = torch.zeros(len(TASK_NAMES), device=self.device)
            right = zero.scatter_add(0, task.flatten(), hit.flatten())
            count = zero.scatter_add(0, task.flatten(), valid.float().flatten())
        total = answer_loss + settings.label_weight * label_loss + settings.stream_weight * stream_loss
        return Losses(total, label_loss.detach(), stream_loss.detach(), answer_loss.detach(), right, count)

    def _label_loss(self, hidden: Tensor, labels: dict[str, Tensor]) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        for scores, name in zip(self.model.patch_logits(hidden), LABELS, strict=True):
            target = labels[name].flatten()
            each = F.cross_entropy(scores.flatten(0, -2), target, reduction="none")
            # Most patches show nothing; things and nothing weigh the same.
            thing = (target > 0).float()
            total = total + (each * thing).sum() / thing.sum().clamp(min=1) / 2
            total = total + (each * (1 - thing)).sum() / (1 - thing).sum().clamp(min=1) / 2
        return total

    @staticmethod
    def _pooled_slots(slots: Tensor) -> tuple[Tensor, Tensor]:
        """Slot that a visual token shows (0 for none) and whether it shows anything, `[clips, frames, tokens]`.

        `slots` is that of `patch_labels`, `[clips, frames, rows, cols]`; a token pools 2 x 2 patches.
        """
        pooled = torch.stack([slots[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0).flatten(2)
        return pooled, pooled > 0

    def _stream_loss(
        self, watched: Tensor, stream: Stream, labels: dict[str, Tensor], slot: Tensor, thing: Tensor, clock: Tensor
    ) -> Tensor:
        """How badly stream tokens tell their place, their time, and when what they show came and changed."""
        clips, frames, tokens = slot.shape
        first = self.encoder.seconds[0]
        second = (clock[..., 1].long() - first)[..., None].expand(-1, -1, tokens)
        targets = [second]
        for name in ("born", "since"):
            at = labels[name].gather(2, (slot - 1).clamp(min=0))
            targets.append(second[..., 0].gather(1, at.flatten(1)).unflatten(1, (frames, tokens)))
        side = self.model.sizes.side // 2
        place = torch.arange(tokens, device=slot.device).expand(clips, frames, -1)
        packed = stream.visual >= 0
        index = stream.visual.clamp(min=0)
        shows = thing.flatten(1).gather(1, index) & packed
        total = watched.new_zeros((), dtype=torch.float32)
        every = [(target, shows) for target in targets] + [(place // side, packed), (place % side, packed)]
        for scores, (target, counted) in zip(self.model.stream_logits(watched), every, strict=True):
            wanted = torch.where(counted, target.flatten(1).gather(1, index), -100)
            each = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
            total = total + each / counted.sum().clamp(min=1)
        return total

    def _hidden_frames(self, needed: Tensor) -> Tensor:
        """Frames that questions must not look at, bool like `needed`: some of the ones that prove nothing."""
        clips, questions, frames = needed.shape
        draw = {"generator": self.generator, "device": self.device}
        some = torch.rand(clips, questions, 1, **draw) < self.settings.hide_share
        hide = torch.rand(clips, questions, frames, **draw) < torch.rand(clips, questions, 1, **draw)
        return hide & some & ~needed

    # ---------------------------------------------------------------------------------------------- checkpoints

    def save(self, path: Path) -> None:
        """Write everything needed to go on exactly; the old file stays until the new one is whole."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": vars(self.progress),
            "branch": self.settings.branch,
            "random": self.random.getstate(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; one of another branch gives weights and optimiser only."""
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        if "optimiser" not in state:  # weights alone: its moments come back within some steps
            return
        self.optimiser.load_state_dict(state["optimiser"])
        progress = Progress(**state["progress"])
        if state["branch"] != self.settings.branch:
            # Branches go on with clips that the trunk has not seen.
            self.progress = Progress(next_batch=progress.next_batch)
            return
        self.progress = progress
        self.random.setstate(state["random"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu())


# --------------------------------------------------------------------------------------------------------- the run


def train(trainer: Trainer, feed: Feed, out: Path, *, log_every_s: float = 10.0, check: dict | None = None,
          stop_after_s: float = math.inf) -> list[dict]:  # fmt: skip
    """Train until the branch is done or `stop_after_s` seconds have passed; the lines of history written.

    Loss curve and checks go to `history.jsonl`; a checkpoint is written every minute and at the end. `check` holds
    the arguments of `evaluate` for a look at the validation set every minute.
    """
    settings, progress, branch = trainer.settings, trainer.progress, trainer.settings.branch
    out.mkdir(parents=True, exist_ok=True)
    history, sums, num = [], {}, 0
    began = last = shown = minute = time.perf_counter()

    def note(line: dict) -> None:
        history.append(line)
        with (out / "history.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def look() -> None:
        if check:
            scores = evaluate(trainer.model, trainer.encoder, device=trainer.device, dtype=trainer.dtype, **check)
            seconds = round(progress.seconds, 1)
            note({"branch": branch, "step": progress.step, "seconds": seconds, "validation": scores})

    def add(losses: Losses) -> None:
        for name in ("labels", "stream", "answers", "right", "asked"):
            value = getattr(losses, name)
            if value is not None:
                sums.setdefault(name, []).append(value)

    for frames, arrays in feed:
        now = time.perf_counter()
        # Compiling and checking take long and train nothing: a box of minutes is filled with steps.
        progress.seconds += min(now - last, 2.0) if trainer.device.type == "cuda" else now - last
        last = now
        if progress.share(settings) >= 1.0 or now - began >= stop_after_s:
            break
        add(trainer.step(frames, arrays))
        progress.next_batch = feed.next_batch
        num += len(arrays["ids"])
        if now - shown >= log_every_s:
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            mean = {
                name: torch.stack(sums[name]).mean().item() for name in ("labels", "stream", "answers") if name in sums
            }
            line = {"branch": branch, "step": progress.step, "seconds": round(progress.seconds, 1),
                    "rate": round(trainer.rate(progress.share(settings)), 6), "clips_per_s": round(num / (now - shown)),
                    "reused": round(feed.reused / max(1, feed.made + feed.reused), 3)}  # fmt: skip
            line |= {name: round(value, 4) for name, value in mean.items()}
            if "asked" in sums:
                right, asked = (torch.stack(sums[name]).sum(0).cpu() for name in ("right", "asked"))
                line["right"] = {
                    n: round((r / max(a, 1)).item(), 3) for n, r, a in zip(TASK_NAMES, right, asked, strict=True)
                }
            note(line)
            sums, num, shown = {}, 0, now
        if now - minute >= 60:
            trainer.save(out / f"{branch}.pt")
            look()
            minute = time.perf_counter()
    trainer.save(out / f"{branch}.pt")
    look()
    return history


def benchmark(trainer: Trainer, feed: Feed, seconds: float) -> dict:
    """Run every kind of step for a while and print where the time goes."""
    out: dict = {"parameters": count_parameters(trainer.model)}
    source = iter(feed)
    began = time.perf_counter()
    # (name, branch, share of the branch): eyes alone, dense clips, dropped tokens, Cacher in the loop.
    stages = (("eyes", "trunk", 0.01), ("dense", "trunk", 0.3), ("dropped", "pocket", 0.5), ("aware", "aware", 0.5))
    for name, branch, share in stages:
        trainer.settings = replace(trainer.settings, branch=branch, steps=1000)
        trainer.clock.active, trainer.clock.spent = False, {}
        begin = time.perf_counter()
        seen: set[int] = set()
        while True:  # every shape once, so that compilation is over
            frames, arrays = next(source)
            trainer.progress.step = int(share * 1000)
            trainer.step(frames, arrays)
            seen.add(frames)
            if len(seen) == len(feed.settings.buckets) or time.perf_counter() - begin > seconds:
                break
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        warm = time.perf_counter() - begin

        def timed(limit: float, at: float) -> tuple[int, int, float]:
            steps = clips = 0
            start = time.perf_counter()
            while time.perf_counter() - start < limit:
                with trainer.clock.part("data"):
                    frames, arrays = next(source)
                trainer.progress.step = int(at * 1000)
                trainer.step(frames, arrays)
                steps, clips = steps + 1, clips + len(arrays["ids"])
                if trainer.device.type == "cuda" and steps % 8 == 0:
                    torch.cuda.synchronize()
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            return steps, clips, time.perf_counter() - start

        steps, clips, spent = timed(seconds / 8, share)
        trainer.clock.active = True
        parts, _, _ = timed(seconds / 12, share)
        split = {part: round(1e3 * value / parts, 1) for part, value in trainer.clock.spent.items()}
        out[name] = {"first_s": round(warm, 1), "step_ms": round(1e3 * spent / steps, 1),
                     "clips_per_s": round(clips / spent), "split_ms": split}  # fmt: skip
        print(json.dumps({name: out[name]}), flush=True)
    trainer.clock.active = False
    if trainer.device.type == "cuda":
        out["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    out["batches_made_per_s"] = round(feed.made / (time.perf_counter() - began), 2)
    out["reused"] = round(feed.reused / max(1, feed.made + feed.reused), 3)
    print(json.dumps(out), flush=True)
    return out


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--branch", choices=BRANCHES, default="trunk", help="what to train")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time of the branch, all commands together")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="end this command after so many seconds")
    parser.add_argument("--out", type=Path, default=Path("out/pocket"), help="checkpoints and history.jsonl")
    parser.add_argument("--start", type=Path, help="checkpoint to start a branch from (trunk.pt in --out)")
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    parser.add_argument("--frames-per-step", type=int, default=1536, help="frames of a batch")
    parser.add_argument("--rate", type=float, default=TrainSettings.rate, help="largest learning rate")
    parser.add_argument("--check-clips", type=int, default=96, help="validation clips to look at every minute")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, 20 steps")
    parser.add_argument("--benchmark", type=float, help="measure speed for about so many seconds and stop")
    given = parser.parse_args(argv)

    settings = TrainSettings(branch=given.branch, minutes=given.minutes, rate=given.rate)
    data = replace(DataSettings(), frames_per_step=given.frames_per_step)
    sizes, workers = PocketSizes(), given.workers
    if given.smoke:
        settings, data, sizes, workers = replace(settings, steps=20), SMOKE, TINY, min(workers, 2)
    out: Path = given.out
    own, source = out / f"{given.branch}.pt", given.start
    if own.exists() and not given.benchmark:
        source = own
    elif source is None and given.branch != "trunk":
        source = out / "trunk.pt"
    state = torch.load(source, map_location="cpu", weights_only=False, mmap=True).get("progress", {}) if source else {}
    # Workers first: they are forked, which must happen before the device is touched.
    feed = Feed(data, workers, first_batch=state.get("next_batch", 0 if source is None else 100_000))
    try:
        device = torch.device("cuda" if torch.cuda.is_available() and not given.smoke else "cpu")
        torch.backends.cuda.enable_cudnn_sdp(False)  # it would make a plan for every new shape
        torch.set_float32_matmul_precision("high")
        trainer = Trainer(settings, sizes, device, compiled=device.type == "cuda" and not given.eager)
        if given.benchmark:
            benchmark(trainer, feed, given.benchmark)
            return
        if source:
            trainer.load(source)
        check = None
        if given.check_clips and not given.smoke:
            settings_to_check = ("dense", "keep=20", "cacher=4:0.25")
            check = {"data": make_set("validation", given.check_clips, 24), "settings": settings_to_check}
        train(trainer, feed, out, check=check, stop_after_s=given.stop_after, log_every_s=1.0 if given.smoke else 10.0)
    finally:
        feed.close()


if __name__ == "__main__":
    main()
