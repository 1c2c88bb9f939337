"""Teach a pocket model when to speak: `python -m recipes.pocket.responses --model onlooker/models/pocket_naive`.

The model stays frozen, bit for bit: small parts learn beside it, of what it computes for every frame anyway. Frames of
many clips are read once, as the model's own arm was trained (all tokens; dropped at random; by STC-Pruner), and kept on
the device; on them learn

- `informative` and `arrival`, two heads on a frame's last hidden state (MMDuet): anything came, left or changed; a
  thing came;
- a row of the output layer for the silence token (VideoLLM-online): likelier than all other tokens together where
  nothing is to be said;
- a decision net (Dispider): react now to "tell me when a red star appears."? Things of the clip, and look-alikes that
  never come; after a made-up answer the same appearance must not be told again.

Each has a twin: the same steps on labels of other clips; the net also one that does not know what it answered. Three
seeds; the first is written as `heads.safetensors`, and what all of them reach on validation clips as a line of JSON.
"""

import argparse
import json
import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from onlooker.models import _eight_bits
from onlooker.models._decider import DecisionNet
from onlooker.models._signals import FILE
from onlooker.world import make_episode, rasterise, render_tables
from onlooker.world.episode import Split
from onlooker.world.lexicon import COLOUR_NAMES, SHAPES, TEMPLATES, article
from recipes.pocket import augment
from recipes.pocket.evaluate import load_checkpoint
from recipes.pocket.model import Pocket
from recipes.pocket.select import choose_tokens, draw_counts
from recipes.pocket.tokenizer import PAD, Encoder

FRAMES, PART = 48, 16
LEVELS = (("L0", 0.5), ("L1", 0.15), ("L2", 0.2), ("L3", 0.15))
PAIRS = [(colour, shape) for shape in SHAPES for colour in COLOUR_NAMES]
"""Pair `8 * (shape - 1) + colour - 1` is a coloured shape."""
ARMS = {"pocket_naive": "naive", "pocket_neutral": "neutral", "pocket_stc": "aware"}
HEADS = ("informative", "arrival")
IN_TIME = 3
"""Frames after its first in which a thing must be told."""


@dataclass(frozen=True)
class Settings:
    """How the parts are trained."""

    clips: int = 4096
    steps: int = 1500
    """Of the decision net."""
    batch: int = 32
    requests: int = 16
    """Of a clip in a step."""
    rate: float = 2e-3
    head_steps: int = 400
    """Of the heads and the silence, each on all frames."""
    seeds: int = 3


# ------------------------------------------------------------------------------------------------------------ clips


def make_part(number: int, split: Split) -> dict[str, np.ndarray]:
    """The tables of `PART` clips at one frame a second, and their clock times."""
    episodes, times, clocks = [], [], []
    for seed in range(number * PART, (number + 1) * PART):
        rng = random.Random(f"responses/{split}/{seed}")
        level = rng.choices([name for name, _ in LEVELS], [share for _, share in LEVELS])[0]
        start, length, kind = rng.random(), FRAMES + 2.0, "mixed"
        if level == "L0" and rng.random() < 0.6:  # streams with quiet times, somewhere in the middle
            kind, length = "long", 240.0
            start += rng.randrange(180)
        episodes.append(make_episode(seed, split, length, kind if level == "L0" else "mixed", level=level))
        times.append(start + np.arange(FRAMES))
        clocks.append(np.floor(times[-1] - start + rng.randrange(95 * 60)).astype(np.int64))
    return render_tables(episodes, np.stack(times)) | {"clock": np.stack(clocks)}


def _make(job: tuple[int, Split]) -> dict[str, np.ndarray]:
    return make_part(*job)


@dataclass
class Bank:
    """What a frozen model computed for the frames of many clips."""

    carriers: Tensor
    """`[clips, frames, tokens, dim]`."""
    real: Tensor
    """Which of them were kept, bool `[clips, frames, tokens]`."""
    hidden: Tensor
    """Last hidden state of every frame, `[clips, frames, dim]`."""
    others: Tensor
    """Log of the sum of the exponentials of all scores but that of silence, float32 `[clips, frames]`."""
    shown: Tensor
    """Which coloured shapes are in view, bool `[clips, pairs, frames]`."""
    labels: Tensor
    """Of the heads, bool `[clips, heads, frames]`; the first frame of a clip tells nothing."""


def labels_of(tables: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`Bank.shown` and `Bank.labels` of a part."""
    x, y = tables["x"], tables["y"]
    seen = tables["visible"].bool() & (x > 0.02) & (x < 0.98) & (y > 0.02) & (y < 0.98)
    shape, colour = tables["shape"].long(), tables["colour_id"].long()
    is_pair = seen & (shape >= 1) & (shape <= len(SHAPES)) & (colour >= 1)
    pair = torch.where(is_pair, 8 * (shape - 1) + colour - 1, len(PAIRS))
    clips, frames, _ = pair.shape
    shown = torch.zeros(clips, frames, len(PAIRS) + 1, dtype=torch.bool, device=pair.device)
    shown = shown.scatter(2, pair, True)[..., : len(PAIRS)].transpose(1, 2)
    sprite = torch.where(seen, tables["sprite"].long(), -1)
    came = _new(sprite, seen)
    left = _new(sprite.flip(1), seen.flip(1)).flip(1).roll(1, 1)  # it was there one frame before
    look = tables["colour_id"].long() * seen
    same = (sprite[:, 1:] == sprite[:, :-1]) & seen[:, 1:]
    turned = F.pad((same & (look[:, 1:] != look[:, :-1])).any(2), (1, 0))
    glyphs = tables["glyphs"]
    turned |= F.pad((glyphs[:, 1:] != glyphs[:, :-1]).any(2), (1, 0))
    labels = torch.stack([came | left | turned, came], dim=1)
    labels[..., 0] = False
    return shown, labels


def _new(sprite: Tensor, seen: Tensor) -> Tensor:
    """Frames that show a thing that the frame before did not, bool `[clips, frames]`."""
    before = F.pad(sprite[:, :-1], (0, 0, 1, 0), value=-1)
    return (seen & ~(sprite[..., :, None] == before[..., None, :]).any(-1)).any(-1)


@torch.no_grad()
def read(model: Pocket, encoder: Encoder, arm: str, parts, device: torch.device, dtype: torch.dtype, seed: int) -> Bank:
    """Have a model read parts of clips as its arm was trained."""
    generator = torch.Generator(device).manual_seed(seed)
    rng, found = random.Random(seed), []
    silence = encoder.encode(PAD)[0]
    for part in parts:
        tables = {name: torch.from_numpy(array).to(device) for name, array in part.items()}
        clock = tables.pop("clock")
        side = model.sizes.image
        images = rasterise(tables, side, side, chunk_frames=256).images
        strengths = augment.draw_strengths(len(clock), generator).repeat_interleave(FRAMES, 0)
        pixels = augment.spoil(images.flatten(0, 1), strengths).to(dtype)
        features = model.project(model.encode(pixels)).unflatten(0, clock.shape)
        tokens = features.shape[2]
        most = tokens if arm == "naive" or rng.random() < 0.4 else round(tokens * rng.choice((0.5, 0.3, 0.3)))
        keep = torch.ones(features.shape[:3], dtype=torch.bool, device=device)
        if most < tokens:
            counts = draw_counts(len(clock), FRAMES, most, tokens, generator)
            keep = choose_tokens(features, counts, generator, named=arm == "aware")
        marks = torch.stack([_ids(encoder.minutes, device)[clock // 60 % 100],
                             _ids(encoder.seconds, device)[clock % 60]], dim=-1)  # fmt: skip
        stream = model.pack(features, keep, marks, torch.ones_like(clock, dtype=torch.bool),
                            model.stream_length(FRAMES, most))  # fmt: skip
        ends = _ends(stream.frame)
        hidden = model.watch(stream).gather(1, ends[..., None].expand(-1, -1, features.shape[3]))
        scores = model.logits(hidden)
        scores[..., silence] = -torch.inf
        found.append((features, keep, hidden, scores.logsumexp(-1), *labels_of(tables)))
    return Bank(*(torch.cat(column) for column in zip(*found, strict=True)))


def _ids(ids, device: torch.device) -> Tensor:
    return torch.tensor(list(ids), device=device)


def _ends(frame: Tensor, frames: int = FRAMES) -> Tensor:
    """Place of every frame's last packed token, int64 `[clips, frames]`."""
    number = torch.arange(frames, device=frame.device)
    return torch.searchsorted(frame.contiguous(), number.expand(len(frame), -1).contiguous(), right=True) - 1


# ------------------------------------------------------------------------------------------------------ heads, silence


def train_rows(inputs: Tensor, offset: Tensor | None, labels: Tensor, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows `[outputs, dim]` and biases of logistic regressions of `[frames, dim]` on bool `[frames, outputs]`; `offset`
    `[frames]` is subtracted from the logits."""
    torch.manual_seed(seed)
    mean, scale = inputs.mean(0), inputs.std(0).clamp(min=1e-4)
    even = (inputs - mean) / scale
    layer = nn.Linear(inputs.shape[1], labels.shape[1]).to(inputs.device)
    optimiser = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-2, total_steps=steps)
    target = labels.float()
    weight = ((1 - target).sum(0) / target.sum(0).clamp(min=1)).clamp(max=30.0)
    for _ in range(steps):
        logits = layer(even) - (0 if offset is None else offset[:, None])
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        rows = layer.weight / scale
        return rows, layer.bias - rows @ mean


def precision_of(scores: Tensor, labels: Tensor) -> float:
    """Average precision of `[frames]`."""
    order = scores.argsort(descending=True)
    hits = labels[order].float()
    return float((hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device) * hits).sum() / hits.sum())


def teach_rows(bank: Bank, check: Bank, settings: Settings, seed: int, shuffled: bool) -> tuple[dict, dict]:
    """Heads and the silence: weights by name as `onlooker.models` reads them, and average precision on `check`."""
    inputs, labels = bank.hidden[:, 1:].float().flatten(0, 1), bank.labels[..., 1:]
    labels = (labels.roll(1, 0) if shuffled else labels).transpose(1, 2).flatten(0, 1)
    rows, bias = train_rows(inputs, None, labels, settings.head_steps, seed)
    offset = bank.others[:, 1:].flatten()
    silent, silent_bias = train_rows(inputs, offset, ~labels[:, :1], settings.head_steps, seed)
    weights = {f"{name}.weight": rows[n : n + 1] for n, name in enumerate(HEADS)}
    weights |= {f"{name}.bias": bias[n : n + 1] for n, name in enumerate(HEADS)}
    weights |= {"silence.weight": silent, "silence.bias": silent_bias}
    inputs = check.hidden[:, 1:].float().flatten(0, 1)
    wanted = check.labels[..., 1:].transpose(1, 2).flatten(0, 1)
    told = {name: precision_of(inputs @ rows[n] + bias[n], wanted[:, n]) for n, name in enumerate(HEADS)}
    quiet = inputs @ silent[0] + silent_bias - check.others[:, 1:].flatten()
    told["silence"] = precision_of(-quiet, wanted[:, 0])
    told |= {f"chance_{name}": float(wanted[:, n].float().mean()) for n, name in enumerate(HEADS)}
    return weights, told


# ------------------------------------------------------------------------------------------------------- decision net


def request_rows(model: Pocket, encoder: Encoder) -> Tensor:
    """Mean embeddings of both wordings of every request, `[wordings, pairs, dim]`."""

    def row(text: str) -> Tensor:
        return model.embed_text(torch.tensor(encoder.encode(text), device=next(model.parameters()).device)).mean(0)

    words = [[wording.format(a_thing=article(f"{c} {s}")) for c, s in PAIRS] for wording in TEMPLATES["tell_me"]]
    return torch.stack([torch.stack([row(text) for text in texts]) for texts in words]).detach().float()


def draw_requests(shown: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pairs asked of each clip, int64 `[clips, count]`: what comes, look-alikes, and others."""
    there = shown.any(2).float()
    grid = there.unflatten(1, (len(SHAPES), len(COLOUR_NAMES)))
    alike = ((grid.sum(1, keepdim=True) + grid.sum(2, keepdim=True)) > 0).float().flatten(1)
    return torch.multinomial(4 * there + alike + 0.1, count, generator=generator)


def appearances(shown: Tensor) -> tuple[Tensor, Tensor]:
    """Which frames belong to an appearance, and its number, `[..., frames]`: a gap of one frame is none."""
    gap = shown[..., :-2] & shown[..., 2:]
    closed = shown | F.pad(gap, (1, 1))
    return closed, (closed & ~F.pad(closed[..., :-1], (1, 0))).long().cumsum(-1)


def made_up_history(shown: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whether to react, bool `[..., frames]`, and seconds since the last answer, infinite before: most appearances were
    answered within three frames, some never, and some answers were given to nothing."""

    def lots(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=shown.device)

    frames = shown.shape[-1]
    _, number = appearances(shown)
    place = torch.arange(frames, device=shown.device)
    answered = torch.zeros_like(shown)
    for nth in range(1, int(number.max()) + 1):
        mine = shown & (number == nth)
        first = torch.where(mine, place, frames).amin(-1)
        at = first + (lots(*first.shape) * 3).long()
        at = torch.where(lots(*first.shape) < 0.75, at, frames)
        answered |= (place == at[..., None]) & mine
    wrong = (lots(*shown.shape[:-1]) < 0.15)[..., None] & (place == (lots(*shown.shape[:-1], 1) * frames).long())
    told = answered | (wrong & ~shown)
    last = torch.where(told, place, -1).cummax(-1).values
    last = F.pad(last[..., :-1], (1, 0), value=-1)
    since = torch.where(last >= 0, (place - last).float(), torch.inf)
    own = torch.where(answered, number, 0).cummax(-1).values
    done = F.pad(own[..., :-1], (1, 0)) == number
    return shown & ~done, since


def windows(glances: Tensor, size: int) -> Tensor:
    """`[clips, frames, requests, window, glance]` of glances `[clips, frames, requests, glance]`."""
    padded = F.pad(glances, (0, 0, 0, 0, size - 1, 0))
    return torch.stack([padded[:, n : n + glances.shape[1]] for n in range(size)], dim=3)


def teach_net(bank: Bank, rows: Tensor, settings: Settings, seed: int, twin: str = "") -> DecisionNet:
    """A decision net; twin `shuffled` learns from labels of other clips, `forgetful` is not told what it answered."""
    torch.manual_seed(seed)
    device = bank.carriers.device
    generator = torch.Generator(device).manual_seed(seed)
    net = DecisionNet(bank.carriers.shape[3]).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), settings.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, total_steps=settings.steps)
    for _ in range(settings.steps):
        clips = torch.randint(len(bank.carriers), (settings.batch,), generator=generator, device=device)
        shown = bank.shown[clips]
        asked = draw_requests(shown, min(settings.requests, len(PAIRS)), generator)
        shown = (shown.roll(1, 0) if twin == "shuffled" else shown).gather(
            1, asked[..., None].expand(-1, -1, shown.shape[2])
        )
        target, since = (part.transpose(1, 2) for part in made_up_history(shown, generator))
        wording = torch.randint(len(rows), asked.shape, generator=generator, device=device)
        requests = rows[wording, asked][:, None]
        carriers = bank.carriers[clips].float()
        carriers = carriers + 0.02 * torch.randn(carriers.shape, generator=generator, device=device)
        glances = windows(net.pool(carriers, requests, bank.real[clips]), net.window)
        history = net.history(since) * (twin != "forgetful")
        logits = net.react(glances, requests, history)
        wanted = target.float()
        weight = ((1 - wanted).sum() / wanted.sum().clamp(min=1)).clamp(max=12.0)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net


@torch.no_grad()
def live(net: DecisionNet, bank: Bank, rows: Tensor, theta: float, *, forgetful: bool = False) -> dict[str, float]:
    """The net on its own history, over all clips: what it told of appearances that began within a clip, what twice,
    and false alarms an hour a request, at a threshold; every thing of a clip and as many that never come."""
    generator = torch.Generator(bank.carriers.device).manual_seed(1)
    hits = num = twice = false = frames = 0
    for first in range(0, len(bank.carriers), 64):
        part = slice(first, first + 64)
        asked = draw_requests(bank.shown[part], 16, generator)
        shown = bank.shown[part].gather(1, asked[..., None].expand(-1, -1, FRAMES))
        requests = rows[0, asked]
        glances = windows(net.pool(bank.carriers[part].float(), requests[:, None], bank.real[part]), net.window)
        last = torch.full(asked.shape, -torch.inf, device=asked.device)
        spoke = torch.zeros_like(shown)
        for at in range(FRAMES):
            history = net.history(at - last) * (not forgetful)
            spoke[..., at] = (net.react(glances[:, at], requests, history).sigmoid() >= theta) & (at - last >= 1)
            last = torch.where(spoke[..., at], at, last)
        closed, number = appearances(shown)
        near = closed | F.pad(closed[..., :-1], (1, 0))
        false += int((spoke & ~near).sum())
        frames += int((~near).sum())
        for nth in range(1, int(number.max()) + 1):
            mine = closed & (number == nth)
            place = torch.arange(FRAMES, device=mine.device)
            begins = torch.where(mine, place, FRAMES).amin(-1)
            counted = mine.any(-1) & (begins > 0) & (begins < FRAMES - IN_TIME)
            inside = spoke & mine & (place < (begins + IN_TIME)[..., None])
            hits, num = hits + int((inside.any(-1) & counted).sum()), num + int(counted.sum())
            twice += int(((spoke & mine).sum(-1) - 1).clamp(min=0)[counted].sum())
    return {"theta": theta, "told": hits / max(1, num), "appearances": num, "twice": twice / max(1, num),
            "false_an_hour": 3600 * false / max(1, frames)}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- command


def teach(path: Path, out: Path | None, banks: tuple[Bank, Bank], rows: Tensor, settings: Settings, write) -> None:
    """Everything for one model: a line for each seed and twin as it is done."""
    bank, check = banks
    for seed in range(settings.seeds):
        began = time.perf_counter()
        weights, told = teach_rows(bank, check, settings, seed, shuffled=False)
        net = teach_net(bank, rows, settings, seed)
        row: dict[str, Any] = {"model": path.name, "seed": seed, "heads": told}
        row["net"] = [live(net, check, rows, theta) for theta in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)]
        write(row | {"seconds": round(time.perf_counter() - began, 1)})
        if seed == 0 and out is not None:
            held = {f"decider.{name}": p.detach() for name, p in net.state_dict().items()}
            whole = {name: t.contiguous().cpu() for name, t in (weights | held).items()}
            save_file(_eight_bits.pack(whole, torch.float16), out)
    for twin in ("shuffled", "forgetful"):
        net = teach_net(bank, rows, settings, 0, twin)
        row = {"model": path.name, "twin": twin}
        row["net"] = [live(net, check, rows, theta, forgetful=twin == "forgetful") for theta in (0.5, 0.7, 0.8, 0.9)]
        if twin == "shuffled":
            row["heads"] = teach_rows(bank, check, settings, 0, shuffled=True)[1]
        write(row)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, help="exported folders; their names tell the arm"
    )
    parser.add_argument("--out", type=Path, help="folder for MODEL.heads.safetensors")
    parser.add_argument("--append", type=Path, help="file of lines for what they reach")
    parser.add_argument("--clips", type=int, default=Settings.clips)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seeds", type=int, default=Settings.seeds)
    parser.add_argument("--workers", type=int, default=14)
    given = parser.parse_args(argv)
    settings = Settings(clips=given.clips, steps=given.steps, seeds=given.seeds)
    train = settings.clips // PART
    jobs: list[tuple[int, Split]] = [(n, "train") for n in range(train)]
    jobs.extend((n, "validation") for n in range(max(1, train // 8)))
    with multiprocessing.get_context("fork").Pool(given.workers) as pool:  # before the device is touched
        parts = pool.map(_make, jobs, chunksize=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cuda.enable_cudnn_sdp(False)
    print(f"{len(parts) * PART} clips", flush=True)

    def write(row: dict) -> None:
        print(json.dumps(row), flush=True)
        if given.append:
            with given.append.open("a") as lines:
                lines.write(json.dumps(row) + "\n")

    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    for path in given.model:
        model, encoder = load_checkpoint(path, device)
        with model.eager(), torch.no_grad():
            banks = tuple(
                read(model, encoder, ARMS.get(path.name, "naive"), some, device, dtype, seed)
                for seed, some in enumerate((parts[:train], parts[train:]))
            )
            rows = request_rows(model, encoder)
        out = given.out / f"{path.name}.{FILE}" if given.out else None
        teach(path, out, (banks[0], banks[1]), rows, settings, write)
        del banks


if __name__ == "__main__":
    main()
