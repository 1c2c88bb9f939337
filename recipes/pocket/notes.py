"""Teach a pocket model to write notes, to comment and to read notes: `python -m recipes.pocket.notes --arm notes`.

Low-rank adapters of the decoder of a frozen, exported model (Hu et al., "LoRA", arXiv 2106.09685), of some 300 kB in
eight bits. What is said, with exact labels from the world (`told.py`):

- a note of a segment: what came, left or changed, each with its time (VST; Think-While-Watching);
- commentary by the second, nothing where nothing comes, sometimes with earlier texts between the frames (LiveCC);
- what changed since a caption, and a sum of captions (ShareGPT4Video);
- questions that frames in view do not answer and older notes do, some of which are wrong;
- at a frame's last token: is there anything to say (VideoLLM-online's silence), did a thing come (MMDuet's heads).

Its twin, `--arm control`, learns from the same clips for as long with questions about frames only, and its heads teach
the decoder nothing. A state is written every half minute; the same command goes on from it. At the end both arms are
looked at on validation clips: greedy notes and commentary, answers with and without notes, and what the heads tell.
"""

import argparse
import json
import math
import multiprocessing
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from onlooker.models import _adapter
from onlooker.models._loading import load_network
from onlooker.models._signals import FILE as HEADS_FILE
from onlooker.world import rasterise
from onlooker.world.raster import draw_chunk
from recipes.pocket import augment, checkpoint
from recipes.pocket.evaluate import LABEL_SIZES
from recipes.pocket.model import Pocket, PocketSizes, Stream, TextWeights, _rms_norm, _vary
from recipes.pocket.responses import HEADS, labels_of, precision_of
from recipes.pocket.tokenizer import MAX_VOCABULARY, PAD, Encoder
from recipes.pocket.told import KINDS, NEWLINE, Script, ToldSettings, Unit, make_clip, make_part

ARMS = ("notes", "control")
PLACES = ("q", "k", "v", "out", "gate", "up", "down")
"""The matrices of a layer that are adapted."""
PART = 16
"""Clips that a process makes at a time."""
LONGEST = 56
"""Tokens that a note may have in the evaluation."""
CHECK_SEED = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained."""

    arm: str = "notes"
    seconds: float = 200.0
    """Of all commands together, from the second step of each on."""
    steps: int | None = None
    """Of all commands together; the training ends at what comes first."""
    clips: int = 32
    rank: int = 9
    rate: float = 3e-3
    warm_share: float = 0.03
    head_weight: float = 0.5
    most_uses: int = 3
    """How often a batch may be used while processes fall behind."""
    seed: int = 0


class Adapted(Pocket):
    """A frozen model, low-rank adapters of its decoder, and rows that tell of a frame's last token."""

    def __init__(self, sizes: PocketSizes, encoder: Encoder, rank: int) -> None:
        super().__init__(sizes, encoder, MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
        self.requires_grad_(False)
        self.down_maps, self.up_maps = nn.ParameterList(), nn.ParameterList()
        for w in Pocket.text_weights(self):
            for place in PLACES:
                rows, cols = getattr(w, place).shape
                self.down_maps.append(nn.Parameter(torch.randn(rank, cols) * cols**-0.5))
                self.up_maps.append(nn.Parameter(torch.zeros(rows, rank)))
        self.tell = nn.Linear(sizes.dim, len(HEADS) + 1)
        """Rows of the heads, then of silence."""
        self.silence = encoder.encode(PAD)[0]
        self.active = True

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def text_weights(self) -> list[TextWeights]:
        """The decoder's layers with their adapters added."""
        layers = super().text_weights()
        if not self.active:
            return layers
        pairs = iter(zip(self.up_maps, self.down_maps, strict=True))
        return [w._replace(**{p: getattr(w, p) + next_map(pairs) for p in PLACES}) for w in layers]

    def read_units(self, stream: Stream, batch: dict[str, Tensor], frames: int) -> tuple[Tensor, Tensor]:
        """Last hidden states of the units' tokens `[clips, tokens, dim]`, and of every frame's last `[clips, frames,
        dim]`.

        A unit sees the prefix, the frames that it may, and itself; its positions follow those of its last frame.
        """
        ids, unit, place = (batch[name].long() for name in ("ids", "unit", "place"))
        asked, since = batch["asked"].long()[..., None], batch["since"].long()[..., None]
        newline = self.hf.model.image_newline.to(stream.embeddings.dtype)
        own = self.embed_text(ids).to(stream.embeddings.dtype)
        y = torch.where((ids == NEWLINE)[..., None], newline, own)
        frame = stream.frame[:, None]
        before = frame <= asked
        visible = before & ((frame >= since) | (frame < 0))
        number = torch.arange(ids.shape[1], device=ids.device)
        inside = (unit[:, :, None] == unit[:, None]) & (number <= number[:, None])
        bias = _bias(torch.cat([visible, inside], dim=2), stream.embeddings.dtype)
        length = stream.embeddings.shape[1]
        positions = before.sum(-1) + place
        turn = (*self.rotary(torch.arange(length, device=ids.device)[None]), *self.rotary(positions))
        x = stream.embeddings
        *weights, last = self.text_weights()
        for w in weights:
            _vary((x, y, bias, *turn))
            x, y = self.text_layer(x, y, w, self.sizes.heads, self.sizes.kv_heads, turn, bias)
        # In the last layer frames' last tokens are further words, whose keys and values stand in the stream.
        ends = frame_ends(stream, frames)
        rows = torch.cat([y, x.gather(1, ends[..., None].expand(-1, -1, x.shape[2]))], dim=1)
        seen = torch.arange(length, device=ids.device) <= ends[..., None]
        nothing = inside.new_zeros(len(ids), frames, inside.shape[2])
        below = _bias(torch.cat([seen, nothing], dim=2), bias.dtype)
        wide = torch.cat([bias, below], dim=2)
        wide = torch.cat([wide, wide.new_full((*wide.shape[:3], frames), -torch.inf)], dim=3)
        turn = (*turn[:2], *self.rotary(torch.cat([positions, ends], dim=1)))
        _vary((x, rows, wide, *turn))
        out = self.last_text_layer(x, rows, last, self.sizes.heads, self.sizes.kv_heads, turn, wide)
        out = _rms_norm(out, self.hf.model.language_model.norm.weight)
        return out[:, : ids.shape[1]], out[:, ids.shape[1] :]


def next_map(pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """What the next adapter adds to its matrix."""
    up, down = next(pairs)
    return up @ down


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[:, None]


def frame_ends(stream: Stream, frames: int) -> Tensor:
    """Place of every frame's last visual token, int64 `[clips, frames]`."""
    place = torch.arange(stream.frame.shape[1], device=stream.frame.device).expand_as(stream.frame)
    where = torch.where(stream.visual >= 0, stream.frame, frames)
    found = torch.zeros(len(place), frames + 1, dtype=torch.int64, device=place.device)
    return found.scatter_reduce(1, where, place, "amax")[:, :frames]


def load(folder: Path, rank: int, device: torch.device, sizes: PocketSizes | None = None) -> tuple[Adapted, Encoder]:
    """An exported model with adapters that change nothing yet."""
    encoder = Encoder()
    model = Adapted(sizes or PocketSizes(), encoder, rank)
    network = load_network(LlavaOnevisionForConditionalGeneration, folder, torch.float32, torch.device("cpu"))
    model.hf.load_state_dict(network.state_dict())
    return model.to(device), encoder


# -------------------------------------------------------------------------------------------------------------- batches


def _made(job: tuple[int, ToldSettings]) -> dict[str, np.ndarray]:
    number, settings = job
    return make_part(number, PART, _encoder(), settings)


_KNOWN: list[Encoder] = []


def _encoder() -> Encoder:
    if not _KNOWN:
        _KNOWN.append(Encoder())
    return _KNOWN[0]


class Feed:
    """Batches from forked processes; made on the spot with `workers` 0. While processes fall behind, recent batches are
    given again, `most_uses` times in all."""

    def __init__(self, told: ToldSettings, settings: Settings, workers: int, first: int = 0) -> None:
        self.told, self.settings, self.next_part = told, settings, first
        self.made = self.reused = 0
        self._recent: deque[list[Any]] = deque(maxlen=192)
        self._random = random.Random(first)
        self._pool = multiprocessing.get_context("fork").Pool(workers) if workers else None
        self._parts: deque[Any] = deque()
        self._ahead = 6 * max(1, workers)
        self._have: list[dict[str, np.ndarray]] = []

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches without end."""
        while True:
            need = -(-self.settings.clips // PART)
            while len(self._have) < need:
                if (part := self._part()) is not None:
                    self._have.append(part)
                    continue
                usable = [entry for entry in self._recent if entry[1] < self.settings.most_uses]
                if usable:
                    entry = self._random.choice(usable)
                    entry[1] += 1
                    self.reused += 1
                    yield entry[0]
                else:
                    time.sleep(0.002)
            parts, self._have = self._have[:need], self._have[need:]
            batch = {name: np.concatenate([p[name] for p in parts])[: self.settings.clips] for name in parts[0]}
            self._recent.append([batch, 1])
            self.made += 1
            yield batch

    def _part(self) -> dict[str, np.ndarray] | None:
        if self._pool is None:
            self.next_part += 1
            return _made((self.next_part - 1, self.told))
        while len(self._parts) < self._ahead:
            self._parts.append(self._pool.apply_async(_made, ((self.next_part, self.told),)))
            self.next_part += 1
        ready = next((one for one in self._parts if one.ready()), None)
        if ready is None:
            return None
        self._parts.remove(ready)
        return ready.get()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()


# ------------------------------------------------------------------------------------------------------------- training


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

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of what is said, and of the heads; and how many units of each kind are wholly right."""
        stream, labels = self.watch(batch)
        states, ends = self.model.read_units(stream, batch, labels.shape[2])
        target, weight = batch["target"].long(), batch["weight"]
        scores = self.model.logits(states)
        each = F.cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none")
        said = (each.view(target.shape) * weight).sum() / weight.sum().clamp(min=1e-6)
        heads = self._head_loss(ends if self.settings.arm == "notes" else ends.detach(), labels)
        with torch.no_grad():
            wrong = ((scores.argmax(-1) != target) & (target >= 0)).float()
            unit = batch["unit"].long()
            missed = wrong.new_zeros(len(unit), batch["kind"].shape[1]).scatter_add(1, unit.clamp(min=0), wrong)
            kind = batch["kind"].long()
            count = wrong.new_zeros(len(KINDS) + 1)
            place = torch.where(kind >= 0, kind, len(KINDS)).flatten()
            right = count.scatter_add(0, place, (missed == 0).float().flatten())
            asked = count.scatter_add(0, place, torch.ones_like(missed).flatten())
        total = said + self.settings.head_weight * heads
        return {"total": total, "said": said.detach(), "heads": heads.detach(), "right": right, "asked": asked}

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

    def step(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """One step on a batch."""
        losses = self.losses(self.copy(arrays))
        losses["total"].backward()
        nn.utils.clip_grad_norm_(list(self.model.learnt.values()), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1
        return losses

    def copy(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """A batch on the device."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        if self.device.type != "cuda":
            return tensors
        return {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}

    def save(self, path: Path, next_part: int) -> None:
        """Everything needed to go on."""
        learnt = {name: p.detach().cpu() for name, p in self.model.learnt.items()}
        checkpoint.save(path, {
            "learnt": learnt, "optimiser": self.optimiser.state_dict(), "steps": self.steps, "seconds": self.seconds,
            "next_part": next_part, "arm": self.settings.arm, "generator": self.generator.get_state().cpu(),
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


def train(trainer: Trainer, feed: Feed, state: Path, note, stop_after_s: float = math.inf) -> None:
    """Train until the training is done, or this command has run `stop_after_s` seconds."""
    began = shown = saved = time.perf_counter()
    before, sums, number, taken = trainer.seconds, Counter(), 0, 0
    right = asked = None
    for arrays in feed:
        now = time.perf_counter()
        if taken == 2:  # what is compiled is compiled by now, and no part of the training
            began = now
        trainer.seconds = before + (now - began if taken >= 2 else 0.0)
        if trainer.share >= 1.0 or now - began >= stop_after_s:
            break
        losses = trainer.step(arrays)
        number, taken = number + 1, taken + 1
        sums.update({name: losses[name] for name in ("said", "heads")})
        right = losses["right"] if right is None else right + losses["right"]
        asked = losses["asked"] if asked is None else asked + losses["asked"]
        if now - shown >= 10 and asked is not None:
            row = {name: round(float(total) / number, 4) for name, total in sums.items()}
            row |= {kind: round(float(right[n] / asked[n]), 3) for n, kind in enumerate(KINDS) if asked[n] > 0}
            note({"step": trainer.steps, "seconds": round(trainer.seconds, 1), "reused": feed.reused, **row})
            sums, number, right, asked, shown = Counter(), 0, None, None, now
        if now - saved >= 30:
            trainer.save(state, feed.next_part)
            saved = now
    trainer.save(state, feed.next_part)


# ----------------------------------------------------------------------------------------------------------- evaluation


Clips = list[tuple[Script, dict[str, np.ndarray], list[Unit]]]


def _check(job: tuple[int, ToldSettings]) -> tuple[Script, dict[str, np.ndarray], list[Unit], dict[str, np.ndarray]]:
    seed, settings = job
    from onlooker.world import render_tables

    script, arrays, units = make_clip(seed, _encoder(), settings)
    tables = render_tables([script.episode], script.times[None, script.start :])
    return script, arrays, units, {f"draw_{name}": table[0] for name, table in tables.items()}


def make_checks(clips: int, told: ToldSettings, workers: int) -> Clips:
    """Validation clips; forked, so call it before the device is touched."""
    jobs = [(CHECK_SEED + n, replace(told, split="validation", plain=False, captioned_share=0.0)) for n in range(clips)]
    if workers:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            made = pool.map(_check, jobs, chunksize=2)
    else:
        made = [_check(job) for job in jobs]
    return [(script, arrays | tables, units) for script, arrays, units, tables in made]


def greedy(trainer: Trainer, encoder: Encoder, clips: Clips, size: int = 32) -> list[list[str]]:
    """What the model says to every unit, word by word on its own words."""
    out: list[list[str]] = []
    for first in range(0, len(clips), size):
        out += _greedy(trainer, encoder, clips[first : first + size])
    return out


def _greedy(trainer: Trainer, encoder: Encoder, clips: Clips) -> list[list[str]]:
    arrays = {name: np.stack([one[1][name] for one in clips]) for name in clips[0][1]}
    batch = trainer.copy(arrays)
    stream, labels = trainer.watch(batch, spoilt=False)
    starts = [list(np.cumsum([0, *(len(unit.ids) for unit in units)])[:-1]) for _, _, units in clips]
    most = max(len(unit.ids) - unit.first for _, _, units in clips for unit in units)
    texts: list[list[list[int]]] = [[[] for _ in units] for _, _, units in clips]
    for place in range(most):
        states, _ = trainer.model.read_units(stream, batch, labels.shape[2])
        best = trainer.model.logits(states).argmax(-1).cpu()
        open_ = False
        ids = batch["ids"].clone()
        for n, (_, _, units) in enumerate(clips):
            for m, unit in enumerate(units):
                # Room for an answer is as long as the true one: longer ones are cut, which counts as wrong.
                if place >= len(unit.ids) - unit.first or (texts[n][m] and texts[n][m][-1] == encoder.end):
                    continue
                at = starts[n][m] + unit.first + place
                word = int(best[n, at - 1])
                texts[n][m].append(word)
                ids[n, at] = word
                open_ = open_ or word != encoder.end
        batch["ids"] = ids
        if not open_:
            break
    return [[encoder.decode(ids) + ("" if encoder.end in ids else "...") for ids in row] for row in texts]


def score(clips: Clips, said: Sequence[Sequence[str]], encoder: Encoder) -> dict[str, Any]:
    """Share of units wholly right by kind, and of happenings that notes and commentary tell, and tell rightly."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for (_, _, units), texts in zip(clips, said, strict=True):
        for unit, text in zip(units, texts, strict=True):
            true = encoder.decode(unit.ids[unit.first :])
            names = [unit.kind]
            if unit.record is not None:
                names.append(f"{unit.kind} {unit.record.task}")
            for name in names:
                asked[name] += 1
                right[name] += text == true
            if unit.kind in ("note", "live", "change"):
                told, wanted = (Counter(happenings(one)) for one in (text, true))
                found[f"{unit.kind} both"] += (told & wanted).total()
                found[f"{unit.kind} told"] += told.total()
                found[f"{unit.kind} wanted"] += wanted.total()
    row: dict[str, Any] = {name: round(right[name] / asked[name], 3) for name in sorted(asked)}
    row["units"] = dict(asked)
    for kind in ("note", "live", "change"):
        row[f"{kind}_recall"] = round(found[f"{kind} both"] / max(1, found[f"{kind} wanted"]), 3)
        row[f"{kind}_precision"] = round(found[f"{kind} both"] / max(1, found[f"{kind} told"]), 3)
    return row


def happenings(text: str) -> list[str]:
    """A note cut into what it tells, each with its time; commentary by its verbs."""
    if "[" in text:
        return [part.strip() for part in text.replace(" [", "\n[").split("\n") if part.strip()]
    return [f"{part.strip()} came" for part in text.split("came") if part.strip(" .")]


@torch.no_grad()
def look(trainer: Trainer, encoder: Encoder, clips: Clips) -> dict[str, Any]:
    """What the model reaches on validation clips."""
    model = trainer.model
    with model.eager():
        row = score(clips, greedy(trainer, encoder, clips), encoder)
        logits, labels = [], []
        for first in range(0, len(clips), 32):
            arrays = {name: np.stack([one[1][name] for one in clips[first : first + 32]]) for name in clips[0][1]}
            batch = trainer.copy(arrays)
            stream, wanted = trainer.watch(batch, spoilt=False)
            _, ends = model.read_units(stream, batch, wanted.shape[2])
            logits.append(trainer.told(ends)[:, 1:].flatten(0, 1))
            labels.append(wanted.transpose(1, 2)[:, 1:].flatten(0, 1))
    told, wanted = torch.cat(logits), torch.cat(labels)
    row["heads"] = {name: round(precision_of(told[:, n], wanted[:, n]), 4) for n, name in enumerate(HEADS)}
    row["heads"]["silence"] = round(precision_of(-told[:, -1], wanted[:, 0]), 4)
    row["heads"] |= {f"chance_{name}": round(float(wanted[:, n].float().mean()), 4) for n, name in enumerate(HEADS)}
    return row


# ---------------------------------------------------------------------------------------------------------------- files


def write(model: Adapted, folder: Path) -> None:
    """The adapter in eight bits, and the rows of heads and silence."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    pairs = iter(zip(model.up_maps, model.down_maps, strict=True))
    named = [f"language_model.model.layers.{n}.{name}.weight" for n in range(model.sizes.layers) for name in names]
    maps = {name: (up.detach().cpu(), down.detach().cpu()) for name, (up, down) in zip(named, pairs, strict=True)}
    save_file(_adapter.pack(maps), folder / _adapter.FILE, metadata={"format": "pt"})
    rows, bias = model.tell.weight.detach().half().cpu(), model.tell.bias.detach().half().cpu()
    held = {}
    for n, name in enumerate((*HEADS, "silence")):
        held |= {f"{name}.weight": rows[n : n + 1].contiguous(), f"{name}.bias": bias[n : n + 1].contiguous()}
    save_file(held, folder / HEADS_FILE)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, default="notes")
    parser.add_argument("--model", type=Path, default=Path("onlooker/models/pocket_naive"), help="an exported folder")
    parser.add_argument("--out", type=Path, default=Path("out/notes"), help="states, adapters, histories")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of training, all commands together")
    parser.add_argument("--steps", type=int, help="the same: it ends at what comes first")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="end this command after so many seconds")
    parser.add_argument("--clips", type=int, default=Settings.clips, help="clips of a step")
    parser.add_argument("--rank", type=int, default=Settings.rank)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    parser.add_argument("--check-clips", type=int, default=192, help="validation clips to look at in the end")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    given = parser.parse_args(argv)
    settings = Settings(given.arm, given.seconds, given.steps, given.clips, given.rank, given.rate, seed=given.seed)
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
    first = checkpoint.load(state, torch.device("cpu"))["next_part"] if checkpoint.exists(state) else 0
    feed = Feed(told, settings, given.workers, first + (1 << 22) * given.seed)
    try:
        on_gpu = torch.cuda.is_available() if given.device == "auto" else given.device.startswith("cuda")
        device = torch.device("cuda" if on_gpu else "cpu")
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(given.seed)
        model, encoder = load(given.model, given.rank, device)
        trainer = Trainer(model, settings, device, compiled=on_gpu and not given.eager)
        if checkpoint.exists(state):
            trainer.load(state)
        note({"set_up_s": round(time.perf_counter() - began, 1), "from_step": trainer.steps})
        train(trainer, feed, state, note, given.stop_after)
    finally:
        feed.close()
    write(model, given.out / f"{name}.adapter")
    note({"step": trainer.steps, "made": feed.made, "reused": feed.reused, "checked": look(trainer, encoder, checks)})


if __name__ == "__main__":
    main()
