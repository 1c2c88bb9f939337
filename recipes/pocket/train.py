"""Train a pocket model: `python -m recipes.pocket.train --arm naive --steps 4000 --minutes 8 --out out/pocket`."""

import argparse
import contextlib
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.world import change_frames, patch_labels, rasterise
from onlooker.world.raster import draw_chunk
from recipes.pocket import augment, checkpoint
from recipes.pocket.data import NEVER, NOT_ASKED, SMOKE, TASK_NAMES, ClipSet, DataSettings, Feed, make_set
from recipes.pocket.evaluate import LABEL_SIZES as LABELS
from recipes.pocket.evaluate import evaluate, sealed_look, sealed_seed
from recipes.pocket.export import write_weights
from recipes.pocket.model import SECONDS, TINY, Pocket, PocketSizes, Stream, count_parameters
from recipes.pocket.optimise import Optimiser
from recipes.pocket.select import choose_tokens, covered, draw_counts
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder

ARMS = ("naive", "neutral", "aware", "truth")
_BEGAN = time.perf_counter()


@dataclass(frozen=True)
class TrainSettings:
    """How one model is trained. The arms differ in what they see of dropped and reused tokens, and `naive` has no
    questions from which frames are hidden."""

    arm: str = "naive"
    """naive: all tokens of every frame, always; neutral: random and uniform drops; aware: STC-Pruner and STC-Cacher;
    truth: keeps what shows things, by ground truth (twins only)."""
    steps: int | None = None
    """Steps of the whole training, over all commands."""
    minutes: float = math.inf
    """Minutes of the whole training, over all commands, from the start of each; it ends at what comes first."""
    rate: float = 2e-3
    """Largest learning rate."""
    warm_share: float = 0.02
    """Share of the training in which the learning rate rises."""
    fall_from: float = 0.35
    """Share of the training after which the learning rate falls to nothing."""
    eyes_share: float = 0.1
    """Share of the training in which only the tower learns, from patch labels."""
    seen_share: float = 0.25
    """Share of the clips of a batch that the tower learns from later; it only looks at the others, which costs a third.
    The decoder learns from all of them."""
    label_weight: float = 0.25
    """Weight of the patch labels later."""
    stream_weight: float = 0.1
    """Weight of what the decoder's stream tokens tell of their place and of when things came."""
    evidence_weight: float = 0.3
    """Weight of when the evidence of a question was, as its last token tells it: a yes or a no alone teaches too little
    to find things with."""
    drop_from: float = 0.4
    """Share of the training after which tokens are dropped and the Cacher runs (not in naive)."""
    dense_share: float = 0.25
    """Share of batches that keep all tokens even then."""
    cached_share: float = 0.6
    """Share of batches of the aware arm that STC-Cacher encodes then."""
    hide_share: float = 0.25
    """Share of questions that cannot look at some of the older frames they do not need (not in naive)."""
    seed: int = 0
    """Seed of the weights and of everything drawn in a step."""


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    seconds: float = 0.0
    next_batch: int = 0

    def share(self, settings: TrainSettings) -> float:
        """0..1 of the training: of its steps or of its minutes, whichever is further."""
        of_steps = self.step / settings.steps if settings.steps else 0.0
        return min(1.0, max(of_steps, self.seconds / (60 * settings.minutes)))


@dataclass
class Losses:
    """What one step gave; tensors stay on the device until they are read."""

    total: Tensor
    labels: Tensor
    stream: Tensor | None = None
    evidence: Tensor | None = None
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

    def __init__(
        self, settings: TrainSettings, sizes: PocketSizes, device: torch.device, *, compiled: bool,
        compiled_draw: bool = True,
    ) -> None:  # fmt: skip
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, device
        self.encoder = Encoder()
        self.model = Pocket(sizes, self.encoder, MAX_VOCABULARY, tuple(LABELS.values())).to(device)
        self.optimiser = Optimiser(self.model.named_parameters())
        self.progress = Progress()
        rank, self.ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_spread() else (0, 1)
        # All ranks take the same kind of step; what is drawn inside a clip is their own.
        self.random = random.Random(f"train/{settings.seed}")
        # On the device: a copy from the host in the middle of a step would stop the queue.
        self.generator = torch.Generator(device).manual_seed(settings.seed + 1000 * rank)
        self.clock = Clock()
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.draw, self.spoil = draw_chunk, augment.spoil
        if compiled:
            self.model.compile_layers()
            self.spoil = torch.compile(augment.spoil)
        if compiled and compiled_draw:
            self.draw = torch.compile(draw_chunk, dynamic=False)

    def share_compiled(self, other: "Trainer") -> None:
        """Run what another trainer of the same sizes has compiled."""
        self.model.share_compiled(other.model)
        self.draw, self.spoil = other.draw, other.spoil

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
            if self.ranks > 1:
                average_gradients(self.model)
            self.optimiser.step(self.rate(share))
        self.progress.step += 1
        return losses

    def _copy(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def rate(self, share: float) -> float:
        """Learning rate: it rises, stays, and falls to nothing."""
        settings = self.settings
        rising = min(1.0, 0.02 + share / max(settings.warm_share, 1e-9))
        falling = min(1.0, max(0.01, (1.0 - share) / max(1.0 - settings.fall_from, 1e-9)))
        return settings.rate * rising * falling

    @torch.no_grad()
    def render(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels `[clips, frames, 3, rows, cols]` and patch labels of a batch."""
        tables = {name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")}
        side, patch = self.model.sizes.image, self.model.sizes.patch
        clips, frames = tables["x"].shape[:2]
        raster = rasterise(tables, side, side, chunk_frames=self._chunk(clips * frames), draw=self.draw)
        labels = patch_labels(tables, raster.owner, patch, least_share=0.08) | change_frames(tables, self.device)
        if self.settings.arm == "truth":
            labels["cover"] = covered(raster.owner, self.model.sizes.frame_tokens)
        strengths = augment.draw_strengths(clips, self.generator).repeat_interleave(frames, 0)
        # Frames of all clips in one row: the same shape in every step, so that one compiled graph serves all.
        pixels = self.spoil(raster.images.flatten(0, 1), strengths).to(self.dtype)
        return pixels.unflatten(0, (clips, frames)), labels

    def _chunk(self, frames: int) -> int:
        """Frames drawn at once: all of them where a compiled graph wants one shape, few where memory has to last."""
        return 256 if self.draw is draw_chunk else frames

    def losses(
        self, batch: dict[str, Tensor], pixels: Tensor, labels: dict[str, Tensor], frames: int, share: float
    ) -> Losses:
        """The losses of a batch."""
        settings, model = self.settings, self.model
        clips = len(pixels)
        # Every arm draws the same numbers in every step, so that the arms see the same clips, spoiled alike.
        draw = [self.random.random() for _ in range(4)]
        saves = settings.arm != "naive" and share >= settings.drop_from
        cached = settings.arm == "aware" and saves and draw[0] < settings.cached_share
        interval, ratio = (2, 4, 4, 8, 8, 0)[int(draw[1] * 6)], (0.15, 0.25, 0.40)[int(draw[2] * 3)]

        def encode(part: Tensor) -> Tensor:
            if cached:
                return model.encode_cached(part, interval, ratio)
            return model.encode(part.flatten(0, 1)).unflatten(0, part.shape[:2])

        learns = clips if share < settings.eyes_share else max(1, round(settings.seen_share * clips))
        hidden = encode(pixels[:learns])
        label_loss = self._label_loss(hidden, {name: labels[name][:learns] for name in LABELS})
        if learns < clips:
            with torch.no_grad():
                seen = encode(pixels[learns:])
            hidden = torch.cat([hidden, seen])
        if share < settings.eyes_share:
            return Losses(label_loss, label_loss.detach())

        features = model.project(hidden.flatten(0, 1)).unflatten(0, (clips, frames))
        tokens = most = features.shape[2]
        dropped = saves and draw[3] >= settings.dense_share
        if dropped:
            part = (draw[3] - settings.dense_share) / (1 - settings.dense_share)
            most = max(1, round(tokens * (0.75, 0.5, 0.3, 0.3, 0.19)[int(part * 5)]))
        slot, thing = self._pooled_slots(labels["slot"])
        if dropped:
            counts = draw_counts(clips, frames, most, tokens, self.generator)
            named = settings.arm == "aware"
            keep = choose_tokens(features.detach(), counts, self.generator, named, labels.get("cover"))
        else:
            keep = torch.ones(clips, frames, tokens, dtype=torch.bool, device=self.device)
        shown = torch.ones(clips, frames, dtype=torch.bool, device=self.device)
        length = model.stream_length(frames, most)
        stream = model.pack(features, keep, batch["clock"].long(), shown, length)
        ids, asked, rows = batch["ids"].long(), batch["asked"].long(), batch["rows"].long()
        hidden_frames = self._hidden_frames(batch["needed"])
        reading = model.read(stream, ids, asked, None if settings.arm == "naive" else hidden_frames)
        stream_loss = self._stream_loss(reading.watched, stream, labels, slot, thing, batch["clock"])
        evidence_loss = self._evidence_loss(reading.found, rows, batch)
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
        total = total + settings.evidence_weight * evidence_loss
        parts = (loss.detach() for loss in (label_loss, stream_loss, evidence_loss, answer_loss))
        return Losses(total, *parts, right, count)

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

    def _evidence_loss(self, found: Tensor, rows: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """How badly questions tell the second in which their evidence begins, where their answers will start."""
        states = found.gather(2, rows[..., :1, None].expand(-1, -1, -1, found.shape[-1]))[:, :, 0]
        frames = batch["evidence"].long()
        seconds = batch["clock"][..., 1].long() - self.encoder.seconds[0]
        wanted = seconds.gather(1, frames.clamp(min=0).flatten(1)).view_as(frames)
        wanted = torch.where(frames == NEVER, SECONDS, torch.where(frames == NOT_ASKED, -100, wanted))
        scores = self.model.evidence_logits(states)
        each = F.cross_entropy(scores.flatten(0, 2), wanted.flatten(), ignore_index=-100, reduction="sum")
        return each / (frames != NOT_ASKED).sum().clamp(min=1)

    def _hidden_frames(self, needed: Tensor) -> Tensor:
        """Frames that questions must not look at, bool like `needed`: some of the ones that prove nothing."""
        clips, questions, frames = needed.shape
        draw = {"generator": self.generator, "device": self.device}
        some = torch.rand(clips, questions, 1, **draw) < self.settings.hide_share
        hide = torch.rand(clips, questions, frames, **draw) < torch.rand(clips, questions, 1, **draw)
        return hide & some & ~needed

    # ---------------------------------------------------------------------------------------------- checkpoints

    def save(self, path: Path) -> None:
        """Write everything needed to go on exactly, in pieces that travel well (`checkpoint`)."""
        # Moments are kept in half precision; the run that goes on takes the same rounding as the one that comes back.
        self.optimiser.round_moments()
        checkpoint.save(path, {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": vars(self.progress),
            "settings": asdict(self.settings),
            "random": self.random.getstate(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        })  # fmt: skip

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of this arm. Raises `ValueError` for that of another one."""
        state = checkpoint.load(path, self.device)
        if state["settings"]["arm"] != self.settings.arm:
            raise ValueError(f"{path} is a checkpoint of {state['settings']['arm']}, not of {self.settings.arm}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])
        self.random.setstate(state["random"])
        if self.ranks == 1:
            self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu())


def is_spread() -> bool:
    """Whether several processes train this model together (`torchrun`)."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def average_gradients(model: torch.nn.Module) -> None:
    """Mean of the gradients of all ranks, in one message."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for p, part in zip(model.parameters(), flat.split([grad.numel() for grad in grads]), strict=True):
        p.grad = part.view_as(p)


# --------------------------------------------------------------------------------------------------------- the run


Checks = dict[str, ClipSet]
"""Validation clips by level."""
LOOK = ("dense",)
LOOK_CLIPS = 32
LAST_LOOK = ("dense", "last=1", "keep=19", "oracle=19")
"""What the gates of the levels need."""


def train(trainer: Trainer, feed: Feed, out: Path, *, log_every_s: float = 10.0, checks: Checks | None = None,
          sealed: Checks | None = None, look_every_s: float = 150.0, weights: Path | None = None,
          stop_after_s: float = math.inf) -> list[dict]:  # fmt: skip
    """Train until the training is done or this command has run `stop_after_s` seconds; the lines of history written.

    Loss curve and looks at the validation set go to `ARM.history.jsonl`; a checkpoint is written every minute, when the
    process is told to end (SIGTERM) and at the end, and with it the model in eight bits to `weights`.
    """
    settings, progress, arm = trainer.settings, trainer.progress, trainer.settings.arm
    out.mkdir(parents=True, exist_ok=True)
    leads = not is_spread() or torch.distributed.get_rank() == 0
    history, sums, num = [], {}, 0
    ended = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    before = progress.seconds
    shown = saved = looked = time.perf_counter()

    def note(line: dict) -> None:
        history.append(line)
        if leads:
            with (out / f"{arm}.history.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

    def keep() -> None:
        trainer.save(out / arm)
        if weights is not None:
            write_weights(trainer.model, weights)

    def look(settings_to_check: Sequence[str], clips: int | None = None, levels: Sequence[str] = ()) -> None:
        for level, data in (checks or {}).items() if leads else ():
            if levels and level not in levels:
                continue
            scores = evaluate(trainer.model, trainer.encoder, data, settings_to_check, trainer.device, trainer.dtype,
                              clips=clips)  # fmt: skip
            seconds = round(progress.seconds, 1)
            note({"arm": arm, "step": progress.step, "seconds": seconds, "level": level, "validation": scores})

    def add(losses: Losses) -> None:
        for name in ("labels", "stream", "evidence", "answers", "right", "asked"):
            value = getattr(losses, name)
            if value is not None:
                sums.setdefault(name, []).append(value)

    for frames, arrays in feed:
        now = time.perf_counter()
        progress.seconds = before + now - _BEGAN
        if progress.share(settings) >= 1.0 or now - _BEGAN >= stop_after_s or ended.is_set():
            break
        add(trainer.step(frames, arrays))
        progress.next_batch = feed.next_batch
        num += len(arrays["ids"])
        if now - shown >= log_every_s:
            note(_report(trainer, feed, sums, num / (now - shown)))
            sums, num, shown = {}, 0, now
        if now - saved >= 60 and leads:
            keep()
            saved = time.perf_counter()
        if now - looked >= look_every_s and progress.share(settings) < 0.9:
            look(LOOK, LOOK_CLIPS, tuple(checks or ())[1:2])  # one level is enough to see how it goes
            looked = time.perf_counter()
    if leads:
        keep()
    signal.signal(signal.SIGTERM, previous)
    if not ended.is_set() and progress.share(settings) >= 1.0:
        look(LAST_LOOK)
        if sealed and leads:
            sealed_look(trainer.model, trainer.encoder, sealed, trainer.device, trainer.dtype,
                        out / f"{arm}.history.jsonl", {"arm": arm, "step": progress.step})  # fmt: skip
    return history


def _report(trainer: Trainer, feed: Feed, sums: dict[str, list[Tensor]], clips_per_s: float) -> dict:
    """A line of history about the steps since the last one."""
    progress = trainer.progress
    line = {"arm": trainer.settings.arm, "step": progress.step, "seconds": round(progress.seconds, 1),
            "share": round(progress.share(trainer.settings), 4),
            "rate": round(trainer.rate(progress.share(trainer.settings)), 6), "clips_per_s": round(clips_per_s),
            "reused": round(feed.reused / max(1, feed.made + feed.reused), 3)}  # fmt: skip
    for name in ("labels", "stream", "evidence", "answers"):
        if name in sums:
            line[name] = round(torch.stack(sums[name]).mean().item(), 4)
    if "asked" in sums:
        right, asked = (torch.stack(sums[name]).sum(0).cpu() for name in ("right", "asked"))
        line["right"] = {
            n: round((r / a).item(), 3) for n, r, a in zip(TASK_NAMES, right, asked, strict=True) if a
        }  # fmt: skip
    return line


def benchmark(trainer: Trainer, feed: Feed, seconds: float) -> dict:
    """Run every kind of step for a while and print where the time goes."""
    out: dict = {"parameters": count_parameters(trainer.model)}
    source = iter(feed)
    began = time.perf_counter()
    # (name, arm, share of the training): eyes alone, all tokens, dropped tokens, both methods in the loop.
    stages = (("eyes", "naive", 0.01), ("dense", "naive", 0.5), ("dropped", "neutral", 0.5), ("aware", "aware", 0.5))
    for name, arm, share in stages:
        trainer.settings = replace(trainer.settings, arm=arm, steps=1000, minutes=math.inf)
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
    # The same number of steps for every arm: what the slowest one does in a minute, once its graphs are compiled.
    slowest = max(out[name]["step_ms"] for name in ("dense", "dropped", "aware"))
    out["compile_s"] = round(sum(out[name]["first_s"] for name, *_ in stages), 1)
    out["steps_a_minute"] = round(60_000 / slowest)
    if trainer.device.type == "cuda":
        out["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    out["batches_made_per_s"] = round(feed.made / (time.perf_counter() - began), 2)
    out["reused"] = round(feed.reused / max(1, feed.made + feed.reused), 3)
    print(json.dumps(out), flush=True)
    return out


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, default="naive", help="what the model sees of dropping and reuse")
    parser.add_argument("--steps", type=int, help="steps of the whole training, all commands together")
    parser.add_argument("--minutes", type=float, default=math.inf, help="minutes of all commands together, at most")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="end this command after so many seconds")
    parser.add_argument("--out", type=Path, default=Path("out/pocket"), help="checkpoints and histories")
    parser.add_argument("--weights", type=Path, help="file to write the model to in eight bits, every minute")
    parser.add_argument("--resume", type=Path, help="folder of the checkpoint to go on from (--out)")
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    parser.add_argument("--frames-per-step", type=int, default=1536, help="frames of a batch")
    parser.add_argument("--rate", type=float, default=TrainSettings.rate, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("--check-clips", type=int, default=160, help="validation clips of each level")
    parser.add_argument("--check-levels", nargs="*", default=["L0", "L2", "L3"], help="levels to look at")
    parser.add_argument("--sealed", default="", help="name of sealed test clips to open once, at the very end")
    parser.add_argument("--sealed-clips", type=int, default=192, help="such clips of each level")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--eager-draw", action="store_true", help="do not compile the drawing of pictures")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, 20 steps where none are given")
    parser.add_argument("--benchmark", type=float, help="measure speed for about so many seconds and stop")
    given = parser.parse_args(argv)
    if given.steps is None and math.isinf(given.minutes):
        given.steps = 20 if given.smoke else 4000

    settings = TrainSettings(given.arm, given.steps, given.minutes, given.rate, seed=given.seed)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    data = replace(DataSettings(), frames_per_step=given.frames_per_step, rank=rank, ranks=ranks)
    sizes, workers = PocketSizes(), given.workers
    if given.smoke:
        data, sizes, workers = replace(SMOKE, rank=rank, ranks=ranks), TINY, min(workers, 2)
    out: Path = given.out
    source = (given.resume or out) / given.arm
    known = checkpoint.exists(source) and not given.benchmark
    state = checkpoint.load(source, torch.device("cpu"))["progress"] if known else {}
    # Workers first: they are forked, which must happen before the device is touched.
    feed = Feed(data, workers, first_batch=state.get("next_batch", 0))
    try:
        leads = not rank and not given.benchmark
        shared = {"workers": 0 if given.smoke else max(1, workers), "frames": 8 if given.smoke else None}
        levels = given.check_levels if leads and given.check_clips else ()
        checks = {level: make_set("validation", given.check_clips, level=level, **shared) for level in levels}
        sealed = {
            level: make_set("test", given.sealed_clips, sealed_seed(given.sealed), level=level, **shared)
            for level in (levels if given.sealed else ())
        }  # fmt: skip
        on_gpu = torch.cuda.is_available() and not given.smoke
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(device)
        if ranks > 1:
            torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
        torch.backends.cuda.enable_cudnn_sdp(False)  # it would make a plan for every new shape
        torch.set_float32_matmul_precision("high")
        trainer = Trainer(settings, sizes, device, compiled=on_gpu and not given.eager,
                          compiled_draw=not given.eager_draw)  # fmt: skip
        if given.benchmark:
            benchmark(trainer, feed, given.benchmark)
            return
        if known:
            trainer.load(source)
        train(trainer, feed, out, checks=checks, sealed=sealed, stop_after_s=given.stop_after, weights=given.weights,
              log_every_s=1.0 if given.smoke else 10.0)  # fmt: skip
    finally:
        feed.close()
        if is_spread():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
