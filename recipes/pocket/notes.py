"""Teach a pocket model to write notes, to comment and to read notes: `python -m recipes.pocket.notes --arm notes`.

Low-rank adapters of the decoder of a frozen, exported model (Hu et al., "LoRA", arXiv 2106.09685), of some 300 kB in
eight bits. What is said, with exact labels from the world (`told.py`):

- a note of every second: what came, left or changed, a line for each (VST; Think-While-Watching);
- commentary by the second, nothing where nothing comes, sometimes with earlier texts between the frames (LiveCC);
- what changed since a caption, and a sum of captions (ShareGPT4Video);
- questions that frames in view do not answer and older notes do, some of which are wrong; first, and then beside the
  clips, behind texts alone (`told_texts.py`);
- at a frame's last token: is there anything to say (VideoLLM-online's silence), did a thing come (MMDuet's heads).

Its twin, `--arm control`, learns from the same clips for as long with questions about frames only, and its heads teach
the decoder nothing. A state is written every half minute; the same command goes on from it. At the end both arms are
looked at on validation clips: greedy notes and commentary, answers with and without notes, and what the heads tell.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onlooker.world import rasterise
from onlooker.world.raster import draw_chunk
from recipes.pocket import augment, checkpoint
from recipes.pocket.model import Stream
from recipes.pocket.notes_feed import Feed
from recipes.pocket.notes_look import look, look_at_texts, make_checks
from recipes.pocket.notes_model import Adapted, begin_with, load, write
from recipes.pocket.responses import labels_of
from recipes.pocket.told import KINDS, ToldSettings

ARMS = ("notes", "control")


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained."""

    arm: str = "notes"
    seconds: float = 200.0
    """Of all commands together, from the second step of each on."""
    steps: int | None = None
    """Of all commands together; the training ends at what comes first."""
    clips: int = 32
    rows: int = 64
    """Rows of text alone that a step of the arm `notes` reads besides."""
    reading_share: float = 0.25
    """Of the training: it begins with texts alone, which cost little and teach to look things up in notes."""
    text_weight: float = 0.5
    rank: int = 9
    rate: float = 3e-3
    warm_share: float = 0.03
    head_weight: float = 0.5
    most_uses: int = 3
    """How often a batch of clips may be used while processes fall behind."""
    most_text_uses: int = 6
    """The same of texts."""
    seed: int = 0


class Trainer:
    """The model, its optimiser, and what is drawn at random in a step."""

    def __init__(self, model: Adapted, settings: Settings, device: torch.device, compiled: bool = False) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.optimiser = torch.optim.AdamW(list(model.learnt.values()), settings.rate, (0.9, 0.98), weight_decay=0.01)
        self.steps, self.seconds = 0, 0.0
        self.draw, self.spoil = draw_chunk, augment.spoil
        if compiled:  # drawn op by op, the pictures take most of a step
            model.compile_layers()
            self.draw, self.spoil = torch.compile(draw_chunk, dynamic=False), torch.compile(augment.spoil)

    @property
    def share(self) -> float:
        """0..1 of the training."""
        of_steps = self.steps / self.settings.steps if self.settings.steps else 0.0
        return min(1.0, max(of_steps, self.seconds / self.settings.seconds))

    def rate(self) -> float:
        """Learning rate: it rises, and falls along a cosine to nothing."""
        rising = min(1.0, 0.02 + self.share / self.settings.warm_share)
        return self.settings.rate * rising * max(0.005, 0.5 + 0.5 * math.cos(math.pi * self.share))

    @torch.no_grad()
    def watch(self, batch: dict[str, Tensor], spoilt: bool = True) -> tuple[Stream, Tensor]:
        """The stream of a batch, and the labels of the heads `[clips, heads, frames]`."""
        tables = {name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")}
        side, (clips, frames) = self.model.sizes.image, tables["x"].shape[:2]
        # The compiled forms want one shape: whole batches of the training.
        draw, spoil, chunk = (self.draw, self.spoil, clips * frames) if spoilt else (draw_chunk, augment.spoil, 256)
        chunk = 256 if draw is draw_chunk else chunk
        images = rasterise(tables, side, side, chunk_frames=chunk, draw=draw).images.flatten(0, 1)
        strengths = augment.draw_strengths(clips, self.generator).repeat_interleave(frames, 0) * spoilt
        pixels = spoil(images, strengths).to(self.dtype)
        features = self.model.project(self.model.encode(pixels)).unflatten(0, (clips, frames))
        keep = torch.ones(features.shape[:3], dtype=torch.bool, device=self.device)
        said, clock = batch["said"].long(), batch["clock"].long()
        length = self.model.stream_length(frames, features.shape[2]) + 128
        stream = self.model.pack(features, keep, clock, keep[..., 0], length, said)
        return stream, labels_of(tables)[1]

    @property
    def reads_only(self) -> bool:
        """This is the part with texts alone."""
        return self.settings.arm == "notes" and self.share < self.settings.reading_share

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of what is said, and of the heads; and how many units of each kind are wholly right."""
        stream, labels = self.watch(batch)
        states, ends = self.model.read_units(stream, batch, labels.shape[2])
        said, right, asked = self._said(states, batch)
        heads = self._head_loss(ends if self.settings.arm == "notes" else ends.detach(), labels)
        total = said + self.settings.head_weight * heads
        return {"total": total, "said": said.detach(), "heads": heads.detach(), "right": right, "asked": asked}

    def text_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of answers that stand in texts, and how many of these are wholly right."""
        with self.model.eager():
            states, _ = self.model.read_units(self._nothing(len(batch["ids"])), batch, 0)
        said, right, asked = self._said(states, batch)
        return {"total": self.settings.text_weight * said, "read": said.detach(), "right": right, "asked": asked}

    def read_texts(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores `[rows, tokens, vocabulary]` of what stands in texts alone."""
        with self.model.eager():
            states, _ = self.model.read_units(self._nothing(len(batch["ids"])), batch, 0)
        return self.model.logits(states)

    def _nothing(self, rows: int) -> Stream:
        """Streams of no frames: the prefix alone."""
        prefix = self.model.embed_text(self.model.prefix).to(self.dtype).expand(rows, -1, -1)
        none = torch.full(prefix.shape[:2], -1, dtype=torch.int64, device=self.device)
        return Stream(prefix, none, none)

    def _said(self, states: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of what is said, and by kind how many units are wholly right and how many there are."""
        target, weight = batch["target"].long(), batch["weight"]
        # Most tokens are asked, not said: scores of those that are said only.
        where = (target >= 0).flatten().nonzero()[:, 0]
        scores = self.model.logits(states.flatten(0, 1)[where])
        wanted = target.flatten()[where]
        each = F.cross_entropy(scores, wanted, reduction="none") * weight.flatten()[where]
        said = each.sum() / weight.sum().clamp(min=1e-6)
        with torch.no_grad():
            wrong = torch.zeros_like(weight).flatten()
            wrong[where] = (scores.argmax(-1) != wanted).float()
            unit, kind = batch["unit"].long(), batch["kind"].long()
            missed = wrong.new_zeros(kind.shape).scatter_add(1, unit.clamp(min=0), wrong.view(weight.shape))
            count = wrong.new_zeros(len(KINDS) + 1)
            place = torch.where(kind >= 0, kind, len(KINDS)).flatten()
            right = count.scatter_add(0, place, (missed == 0).float().flatten())
            asked = count.scatter_add(0, place, torch.ones_like(missed).flatten())
        return said, right, asked

    def told(self, ends: Tensor) -> Tensor:
        """Logits of the heads, then of silence against all other tokens, `[clips, frames, heads + 1]`."""
        logits = self.model.tell(ends.float())
        scores = self.model.logits(ends)
        scores = scores.index_fill(-1, torch.tensor([self.model.silence], device=scores.device), -torch.inf)
        return torch.cat([logits[..., :-1], logits[..., -1:] - scores.logsumexp(-1, keepdim=True)], dim=-1)

    def _head_loss(self, ends: Tensor, labels: Tensor) -> Tensor:
        logits = self.told(ends)[:, 1:]
        wanted = torch.cat([labels, ~labels[:, :1]], dim=1).transpose(1, 2)[:, 1:].float()
        return F.binary_cross_entropy_with_logits(logits, wanted)

    def step(self, arrays: dict[str, np.ndarray] | None, texts: dict[str, np.ndarray] | None = None) -> list[dict]:
        """One step on a batch of clips, on one of texts, or on both."""
        jobs = ((self.losses, arrays), (self.text_losses, texts))
        found = []
        for lose, given in jobs:
            if given is not None:
                losses = lose(self.copy(given))
                losses["total"].backward()
                found.append({name: value.detach() for name, value in losses.items()})
        nn.utils.clip_grad_norm_(list(self.model.learnt.values()), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1
        return found

    def copy(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """A batch on the device."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        if self.device.type != "cuda":
            return tensors
        return {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}

    def save(self, path: Path, next_part: int, next_text: int = 0) -> None:
        """Everything needed to go on."""
        learnt = {name: p.detach().cpu() for name, p in self.model.learnt.items()}
        checkpoint.save(path, {
            "learnt": learnt, "optimiser": self.optimiser.state_dict(), "steps": self.steps, "seconds": self.seconds,
            "next_part": next_part, "next_text": next_text, "arm": self.settings.arm,
            "generator": self.generator.get_state().cpu(),
        })  # fmt: skip

    def load(self, path: Path) -> int:
        """Go on from a state of this arm; the next part. Raises `ValueError` for that of another."""
        state = checkpoint.load(path, torch.device("cpu"))
        if state["arm"] != self.settings.arm:
            raise ValueError(f"{path} is a state of {state['arm']}, not of {self.settings.arm}")
        with torch.no_grad():
            for name, p in self.model.learnt.items():
                p.copy_(state["learnt"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        return state["next_part"]


class Tally:
    """Losses and shares of units wholly right since the last line."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._right: dict[str, Any] = {}

    def add(self, found: list[dict]) -> None:
        """What one step found."""
        for losses in found:
            mark = "text " if "read" in losses else ""
            for name in {"said", "heads", "read"} & losses.keys():
                self._sums[name] += losses[name]
                self._numbers[name] += 1
            before = self._right.get(mark, (0.0, 0.0))
            self._right[mark] = before[0] + losses["right"], before[1] + losses["asked"]

    def row(self) -> dict[str, float]:
        """What to show."""
        row = {name: round(float(total) / self._numbers[name], 4) for name, total in self._sums.items()}
        for mark, (right, asked) in self._right.items():
            row |= {mark + k: round(float(right[n] / asked[n]), 3) for n, k in enumerate(KINDS) if asked[n] > 0}
        return row


def train(trainer: Trainer, feed: Feed, texts: Feed | None, state: Path, note: Callable[[dict], None],
          stop_after_s: float = math.inf) -> None:  # fmt: skip
    """Train until the training is done, or this command has run `stop_after_s` seconds."""
    clips, rows = iter(feed), iter(texts) if texts is not None else None
    tally, spent, drawn = Tally(), 0.0, 0
    last = shown = saved = time.perf_counter()

    def save() -> None:
        trainer.save(state, feed.next_part, texts.next_part if texts is not None else 0)

    while trainer.share < 1.0 and spent < stop_after_s:
        only = trainer.reads_only and rows is not None
        text = next(rows) if rows is not None else None
        tally.add(trainer.step(None if only else next(clips), text))
        now = time.perf_counter()
        drawn += not only
        # In the first two steps with pictures the layers are compiled, which is no part of the training.
        took, last = (now - last if only or drawn > 2 else 0.0), now
        trainer.seconds, spent = trainer.seconds + took, spent + took
        if now - shown >= 10:
            reused = feed.reused + (texts.reused if texts is not None else 0)
            note({"step": trainer.steps, "seconds": round(trainer.seconds, 1), "reused": reused, **tally.row()})
            tally, shown = Tally(), now
        if now - saved >= 30:
            save()
            saved = now
    save()


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, default="notes")
    parser.add_argument("--model", type=Path, default=Path("onlooker/models/pocket_naive"), help="an exported folder")
    parser.add_argument("--adapter", type=Path, help="a folder with the adapter and heads of a training to begin with")
    parser.add_argument("--out", type=Path, default=Path("out/notes"), help="states, adapters, histories")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of training, all commands together")
    parser.add_argument("--steps", type=int, help="the same: it ends at what comes first")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="end this command after so many seconds")
    parser.add_argument("--clips", type=int, default=Settings.clips, help="clips of a step")
    parser.add_argument("--rows", type=int, default=Settings.rows, help="rows of text of a step")
    parser.add_argument("--reading-share", type=float, default=Settings.reading_share, help="first, with texts alone")
    parser.add_argument("--rank", type=int, default=Settings.rank)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    parser.add_argument("--text-workers", type=int, default=6, help="processes that make texts")
    parser.add_argument("--check-clips", type=int, default=192, help="validation clips to look at in the end")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    given = parser.parse_args(argv)
    settings = Settings(given.arm, given.seconds, given.steps, given.clips, given.rows, given.reading_share,
                        rank=given.rank, rate=given.rate, seed=given.seed)  # fmt: skip
    told = ToldSettings(plain=given.arm == "control")
    name, began = f"{given.arm}-{given.seed}", time.perf_counter()
    state = given.out / name
    given.out.mkdir(parents=True, exist_ok=True)

    def note(row: dict) -> None:
        line = json.dumps({"arm": given.arm, "seed": given.seed, "model": given.model.name} | row)
        print(line, flush=True)
        with (given.out / f"{name}.jsonl").open("a") as lines:
            lines.write(line + "\n")

    # Processes first: they are forked, which must happen before the device is touched.
    checks = make_checks(given.check_clips, told, given.workers)
    at = checkpoint.load(state, torch.device("cpu")) if checkpoint.exists(state) else {"next_part": 0, "next_text": 0}
    own = (1 << 22) * given.seed
    feed = Feed(told, settings, given.workers, own + at["next_part"])
    texts = None
    if given.arm == "notes":
        texts = Feed(told, settings, given.text_workers, own + at["next_text"], texts=True)
    try:
        on_gpu = torch.cuda.is_available() if given.device == "auto" else given.device.startswith("cuda")
        device = torch.device("cuda" if on_gpu else "cpu")
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(given.seed)
        model, encoder = load(given.model, given.rank, device)
        if given.adapter is not None:
            begin_with(model, given.adapter)
        trainer = Trainer(model, settings, device, compiled=on_gpu and not given.eager)
        if checkpoint.exists(state):
            trainer.load(state)
        note({"set_up_s": round(time.perf_counter() - began, 1), "from_step": trainer.steps})
        train(trainer, feed, texts, state, note, given.stop_after)
    finally:
        feed.close()
        if texts is not None:
            texts.close()
    write(model, given.out / f"{name}.adapter")
    checked = look(trainer, encoder, checks) | look_at_texts(trainer, told)
    note({"step": trainer.steps, "made": feed.made, "reused": feed.reused, "checked": checked})


if __name__ == "__main__":
    main()
