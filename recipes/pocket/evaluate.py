"""Greedy answers on unseen clips, by task: `python -m recipes.pocket.evaluate --model out/pocket/pocket.pt`."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from onlooker.core.contracts import EncoderAccelerator
from onlooker.core.records import QueryRecord
from onlooker.encode.stc_cacher import STCCacher
from onlooker.evals.run_settings import RunSettings
from onlooker.models._loading import load_network
from onlooker.models.llava_onevision import Vision
from onlooker.world import LEVEL_NAMES, patch_labels, rasterise
from onlooker.world.episode import Split
from recipes.pocket import checkpoint
from recipes.pocket.data import ANSWER_TOKENS, TASK_NAMES, ClipSet, make_set
from recipes.pocket.model import Pocket, PocketSizes, Stream
from recipes.pocket.select import covered, dual_anchor, lattices
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder

LABEL_SIZES = {"shape": 11, "colour": 9, "glyph": 37}
"""What the label heads tell about each patch, and how many classes there are."""
DEFAULT_SETTINGS = (
    "dense", "cacher=4:0.25", "cacher=ours", "stc=19", "cacher=4:0.25,stc=19", "cacher=ours,stc=19", "keep=19",
    "uniform=19", "oracle=19", "every=4", "last=4", "last=1", "blind",
)  # fmt: skip
"""dense; blind: the question alone; last=frames: the newest only; every=n: every n-th frame; cacher=interval:ratio: the
published Cacher, cacher=ours: ours with its default settings; tokens kept of each frame, keep=count: at random,
uniform=count, stc=count: by STC-Pruner's score, oracle=count: those that show things."""
OURS = "ours"
_KEEPERS = ("keep", "uniform", "stc", "oracle")
_CLOCK = re.compile(r"\[(\d\d):(\d\d)\]")


def parse_setting(text: str) -> dict[str, str]:
    """A setting's parts: `{"cacher": "4:0.25", "keep": "20"}`. Raises `ValueError` for an unknown one."""
    parts = dict((part + "=").split("=")[:2] for part in text.split(","))
    if unknown := set(parts) - {"dense", "blind", "last", "every", "cacher", *_KEEPERS}:
        raise ValueError(f"unknown setting {', '.join(sorted(unknown))}: see DEFAULT_SETTINGS")
    return parts


def is_right(said: str, expected: str, record: QueryRecord) -> bool:
    """Whether an answer is right: the same text, or a clock time within the record's tolerance."""
    if record.answer_type != "text" or "seconds" not in record.meta:
        return said == expected
    match = _CLOCK.fullmatch(said)
    return bool(match) and abs(int(match[1]) * 60 + int(match[2]) - record.meta["seconds"]) <= record.tolerance


class Seen:
    """A batch of clips as the model sees it: drawn once, and each tower run once, whatever is asked of them."""

    def __init__(self, model: Pocket, batch: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.model, self.batch = model, batch
        tables = {name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")}
        raster = rasterise(tables, model.sizes.image, model.sizes.image)
        self.owner = raster.owner
        self.pixels = (raster.images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1).to(dtype)
        self._features: dict[str, Tensor] = {}

    def features(self, cacher: str = "") -> Tensor:
        """Decoder tokens `[clips, frames, tokens, dim]`, of the dense tower or under `cacher` ("interval:ratio", or
        "ours")."""
        if cacher not in self._features:
            shape = self.pixels.shape[:2]
            if cacher == OURS:
                hidden = self.under(STCCacher()).flatten(0, 1)
            elif cacher:
                interval, ratio = cacher.split(":")
                hidden = self.model.encode_cached(self.pixels, int(interval), float(ratio)).flatten(0, 1)
            else:
                hidden = self.model.encode(self.pixels.flatten(0, 1))
            self._features[cacher] = self.model.project(hidden).unflatten(0, shape)
        return self._features[cacher]

    def under(self, encoder: EncoderAccelerator) -> Tensor:
        """The tower's output `[clips, frames, tokens, dim]` under an encoder of the library, frame after frame as in a
        stream, computed in the weights' precision."""
        vision, states = Vision(self.model.hf), [encoder.new_state() for _ in self.pixels]
        frames = []
        for frame in self.pixels.float().unbind(1):
            frames.append(encoder.encode(vision.tower, vision.embed_patches(frame), states).hidden)
        return torch.stack(frames, 1).to(self.pixels.dtype)


@torch.no_grad()
def answers(model: Pocket, encoder: Encoder, seen: Seen, setting: str) -> list[list[str]]:
    """What the model says to every question of a batch, greedily."""
    parts, batch = parse_setting(setting), seen.batch
    features = seen.features(parts.get("cacher", ""))
    clips, frames, tokens, _ = features.shape
    count = min(tokens, int(next((parts[name] for name in _KEEPERS if name in parts), tokens)))
    keep = _kept(parts, features, seen.owner, count)
    asked = batch["asked"].long()
    ids, start = batch["ids"].long(), batch["rows"][..., 0].long()
    clock = batch["clock"].long()
    if "last" not in parts:
        step = int(parts.get("every", 1))
        shown = (torch.arange(frames, device=features.device) % step == 0).expand(clips, -1)
        stream = model.pack(features, keep, clock, shown, model.stream_length(-(-frames // step), count))
        said = _say(model, encoder, stream, ids, start, torch.full_like(asked, -1) if "blind" in parts else asked)
    else:
        # States carry what went before, so that older frames must be missing from the stream, question by question.
        place, columns = torch.arange(frames, device=features.device), []
        length = model.stream_length(min(frames, int(parts["last"])), count)
        for number in range(ids.shape[1]):
            one = slice(number, number + 1)
            shown = (place > asked[:, one] - int(parts["last"])) & (place <= asked[:, one])
            stream = model.pack(features, keep, clock, shown, length)
            columns.append(_say(model, encoder, stream, ids[:, one], start[:, one], asked[:, one]))
        said = torch.cat(columns, dim=1)
    return [[encoder.decode(row) for row in clip] for clip in said.tolist()]


def _kept(parts: dict[str, str], features: Tensor, owner: Tensor, count: int) -> Tensor:
    """Tokens kept, bool `[clips, frames, tokens]`."""
    tokens, device = features.shape[2], features.device
    if "uniform" in parts:
        return lattices(round(tokens**0.5), device)[count].expand(features.shape[:3])
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(features.shape[:3], generator=generator).to(device)
    if "stc" in parts:
        score = sum(dual_anchor(features))
    elif "oracle" in parts:
        score = covered(owner, tokens) + 1e-6 * score
    return score.argsort(2, descending=True).argsort(2) < count


def _say(model: Pocket, encoder: Encoder, stream: Stream, ids: Tensor, start: Tensor, asked: Tensor) -> Tensor:
    """Answer tokens `[clips, questions, ANSWER_TOKENS]`, greedily."""
    place = torch.arange(ids.shape[2], device=ids.device)
    ids = torch.where(place >= start[..., None], encoder.pad, ids)
    said = []
    for number in range(ANSWER_TOKENS):
        states = model.read(stream, ids, asked).answered
        row = (start + number).clamp(max=ids.shape[2] - 1)[..., None]
        scores = model.logits(states.gather(2, row[..., None].expand(-1, -1, -1, states.shape[-1])))
        token = scores[:, :, 0].argmax(-1, keepdim=True)
        said.append(token)
        ids = ids.scatter(2, row, token)
    return torch.cat(said, dim=2)


def evaluate(
    model: Pocket, encoder: Encoder, data: ClipSet, settings: Sequence[str], device: torch.device, dtype: torch.dtype,
    *, batch_clips: int = 40, intervals: bool = False, clips: int | None = None, marks: dict[str, str] | None = None,
) -> dict[str, dict]:  # fmt: skip
    """Share of right answers by setting and task; with `intervals`, 95 % bootstrap intervals over clips as well.

    `clips` takes only so many of the set, from its start. `marks` is filled with one digit for each answer in order
    (1 right), a clip after the other with a space between, by setting.
    """
    out: dict[str, dict] = {}
    total = min(len(data.records), clips or len(data.records))
    right = {setting: np.full((total, len(data.records[0])), np.nan) for setting in settings}
    task = np.full((total, len(data.records[0])), -1)
    with model.eager(), torch.no_grad():
        for first in range(0, total, batch_clips):
            rows = slice(first, min(total, first + batch_clips))
            seen = Seen(model, {name: torch.from_numpy(a[rows]).to(device) for name, a in data.arrays.items()}, dtype)
            for setting in settings:
                for clip, texts in enumerate(answers(model, encoder, seen, setting), start=first):
                    for number, text in enumerate(texts):
                        if record := data.records[clip][number]:
                            right[setting][clip, number] = is_right(text, data.texts[clip][number], record)
                            task[clip, number] = TASK_NAMES.index(record.task)
    for setting, found in right.items():
        out[setting] = _summary(found, task, intervals)
        if marks is not None:
            marks[setting] = " ".join("".join(str(int(r)) for r in row if not np.isnan(r)) for row in found)
    return out


def sealed_seed(name: str) -> int:
    """The first seed of the clips that `onlooker eval --seeds sealed:NAME` asks about."""
    return RunSettings(seeds=f"sealed:{name}").first_seed


def sealed_look(
    model: Pocket, encoder: Encoder, sets: dict[str, ClipSet], device: torch.device, dtype: torch.dtype, file: Path,
    about: dict, settings: Sequence[str] = DEFAULT_SETTINGS,
) -> None:  # fmt: skip
    """Append a line to `file` for every level: the table of `settings`, with every mark."""
    for level, data in sets.items():
        marks: dict[str, str] = {}
        scores = evaluate(model, encoder, data, settings, device, dtype, marks=marks)
        print(about, level, {setting: row["all"] for setting, row in scores.items()}, flush=True)
        line = about | {"level": level, "first_seed": data.first_seed, "sealed": scores, "marks": marks}
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def _summary(right: np.ndarray, task: np.ndarray, intervals: bool) -> dict:
    """Mean over questions as `all`, over tasks (each the same weight) as `macro`, and every task's share."""

    def shares(rows: np.ndarray) -> np.ndarray:
        hits, kinds = right[rows], task[rows]
        return np.array(
            [np.nanmean(hits[kinds == n]) if (kinds == n).any() else np.nan for n in range(len(TASK_NAMES))]
        )

    every = np.arange(len(right))
    means = shares(every)
    out = {"all": round(float(np.nanmean(right)), 4), "macro": round(float(np.nanmean(means)), 4)}
    out |= {name: round(float(mean), 3) for name, mean in zip(TASK_NAMES, means, strict=True) if not np.isnan(mean)}
    if intervals:
        rng = np.random.default_rng(0)
        draws = np.stack([shares(rng.integers(0, len(right), len(right))) for _ in range(500)])
        draws = draws[~np.isnan(draws).all(1)]
        low, high = np.nanpercentile(np.nanmean(draws, axis=1), [2.5, 97.5])  # of the macro mean
        out["interval"] = [round(float(low), 4), round(float(high), 4)]
        out["task_intervals"] = {
            name: [round(float(v), 3) for v in np.nanpercentile(draws[:, n], [2.5, 97.5])]
            for n, name in enumerate(TASK_NAMES)
            if name in out
        }
    return out


def load_checkpoint(path: Path, device: torch.device, sizes: PocketSizes | None = None) -> tuple[Pocket, Encoder]:
    """The model of a training state (`FOLDER/ARM`), or of an exported folder, whose label heads are untrained."""
    encoder = Encoder()
    model = Pocket(sizes or PocketSizes(), encoder, MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
    if path.is_dir():
        network = load_network(LlavaOnevisionForConditionalGeneration, path, torch.float32, torch.device("cpu"))
        model.hf.load_state_dict(network.state_dict())
    else:
        model.load_state_dict(checkpoint.load(path, torch.device("cpu"))["model"])
    return model.to(device), encoder


@torch.no_grad()
def eyes(model: Pocket, data: ClipSet, device: torch.device, dtype: torch.dtype, clips: int = 32) -> dict[str, float]:
    """Share of patches that show something whose label the tower's heads tell right (32 clips)."""
    tables = {
        n.removeprefix("draw_"): torch.from_numpy(a[:clips]).to(device) for n, a in data.arrays.items() if "draw_" in n
    }
    raster = rasterise(tables, model.sizes.image, model.sizes.image)
    labels = patch_labels(tables, raster.owner, model.sizes.patch, least_share=0.08)
    pixels = (raster.images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)
    with model.eager():
        scores = model.patch_logits(model.encode(pixels))
    out = {}
    for name, score in zip(LABEL_SIZES, scores, strict=True):
        target = labels[name].flatten(0, 1).flatten(1)
        out[name] = round((score.argmax(-1) == target)[target > 0].float().mean().item(), 4)
    return out


def print_table(scores: dict[str, dict]) -> None:
    """One row per setting."""
    names = [name for name in TASK_NAMES if any(name in row for row in scores.values())]
    width = max(len(setting) for setting in scores)
    print(" " * width, "   all", *(f"{name[:6]:>6}" for name in names))
    for setting, row in scores.items():
        cells = (f"{row.get(name, float('nan')):6.3f}" for name in names)
        print(f"{setting:{width}} {row['all']:6.3f}", *cells)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, help="training states (out/pocket/naive), or exported folders"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="seeds of the clips")
    parser.add_argument("--clips", type=int, default=256, help="number of clips of each level, 8 questions each")
    parser.add_argument(
        "--levels", nargs="+", choices=LEVEL_NAMES, default=["L0", "L2", "L3"], help="what to ask about"
    )
    parser.add_argument("--settings", nargs="+", default=list(DEFAULT_SETTINGS), help="what to measure")
    parser.add_argument("--sealed", default="", help="name of sealed test clips, instead of --split; needs --append")
    parser.add_argument("--append", type=Path, help="file that a line with every mark is added to for each level")
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    parser.add_argument("--json", type=Path, help="write the scores here too")
    given = parser.parse_args(argv)
    if given.sealed and not given.append:
        parser.error("--sealed needs --append FILE")
    first = sealed_seed(given.sealed) if given.sealed else 0
    split: Split = "test" if given.sealed else given.split
    sets = {level: make_set(split, given.clips, first, workers=given.workers, level=level) for level in given.levels}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cuda.enable_cudnn_sdp(False)
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result: dict = {"split": given.split, "clips": given.clips, "first_seed": 0, "fps": 1.0,
                    "torch": torch.__version__, "precision": str(dtype).removeprefix("torch."),
                    "device": device_name, "models": {}}  # fmt: skip
    for path in given.model:
        model, encoder = load_checkpoint(path, device)
        if given.append:
            about = {"arm": path.name, "split": split, "sealed_name": given.sealed, "device": device_name}
            sealed_look(model, encoder, sets, device, dtype, given.append, about, given.settings)
            continue
        for level, data in sets.items():
            scores = evaluate(model, encoder, data, given.settings, device, dtype, intervals=True)
            print(path.name, level)
            print_table(scores)
            row = {"answers": scores, "eyes": eyes(model, data, device, dtype)}
            result["models"].setdefault(path.name, {})[level] = row
    if given.append:
        return
    print(json.dumps(result))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
