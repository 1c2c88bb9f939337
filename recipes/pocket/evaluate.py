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

from onlooker.core.records import QueryRecord
from onlooker.world import patch_labels, rasterise
from recipes.pocket.data import ANSWER_TOKENS, TASK_NAMES, ClipSet, make_set
from recipes.pocket.model import Pocket, PocketSizes
from recipes.pocket.select import dual_anchor
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder

LABEL_SIZES = {"shape": 11, "colour": 9, "glyph": 37}
"""What the label heads tell about each patch, and how many classes there are."""
DEFAULT_SETTINGS = (
    "dense", "blind", "cacher=2:0.25", "cacher=4:0.25", "cacher=8:0.25", "cacher=0:0.25", "cacher=4:0.15",
    "keep=32", "keep=20", "keep=12", "stc=20", "stc=12", "cacher=4:0.25,keep=20",
)  # fmt: skip
"""dense; blind: the question alone; cacher=interval:ratio; keep=count: at random; stc=count: by STC-Pruner's score."""
_CLOCK = re.compile(r"\[(\d\d):(\d\d)\]")


def parse_setting(text: str) -> dict[str, str]:
    """A setting's parts: `{"cacher": "4:0.25", "keep": "20"}`. Raises `ValueError` for an unknown one."""
    parts = dict((part + "=").split("=")[:2] for part in text.split(","))
    if unknown := set(parts) - {"dense", "blind", "cacher", "keep", "stc"}:
        raise ValueError(f"unknown setting {', '.join(sorted(unknown))}: see DEFAULT_SETTINGS")
    return parts


def is_right(said: str, expected: str, record: QueryRecord) -> bool:
    """Whether an answer is right: the same text, or a clock time within the record's tolerance."""
    if record.answer_type != "text" or "seconds" not in record.meta:
        return said == expected
    match = _CLOCK.fullmatch(said)
    return bool(match) and abs(int(match[1]) * 60 + int(match[2]) - record.meta["seconds"]) <= record.tolerance


@torch.no_grad()
def answers(
    model: Pocket, encoder: Encoder, batch: dict[str, Tensor], setting: str, dtype: torch.dtype
) -> list[list[str]]:
    """What the model says to every question of a batch, greedily."""
    parts = parse_setting(setting)
    tables = {name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")}
    side = model.sizes.image
    images = rasterise(tables, side, side).images
    pixels = (images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1).to(dtype)
    clips, frames = pixels.shape[:2]
    if "cacher" in parts:
        interval, ratio = parts["cacher"].split(":")
        hidden = model.encode_cached(pixels, int(interval), float(ratio))
    else:
        hidden = model.encode(pixels.flatten(0, 1)).unflatten(0, (clips, frames))
    features = model.project(hidden.flatten(0, 1)).unflatten(0, (clips, frames))
    count = int(parts.get("keep") or parts.get("stc") or features.shape[2])
    if "stc" in parts:
        score = sum(dual_anchor(features))
    else:
        generator = torch.Generator().manual_seed(0)
        score = torch.rand(features.shape[:3], generator=generator).to(features.device)
    keep = score.argsort(2, descending=True).argsort(2) < count
    shown = torch.ones(clips, frames, dtype=torch.bool, device=features.device)
    stream = model.pack(features, keep, batch["clock"].long(), shown, model.stream_length(frames, count))
    asked = batch["asked"].long()
    if "blind" in parts:
        asked = torch.full_like(asked, -1)
    ids, start = batch["ids"].long(), batch["rows"][..., 0].long()
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
    rows = torch.cat(said, dim=2).tolist()
    return [[encoder.decode(row) for row in clip] for clip in rows]


def evaluate(
    model: Pocket, encoder: Encoder, data: ClipSet, settings: Sequence[str], device: torch.device, dtype: torch.dtype,
    *, batch_clips: int = 64, intervals: bool = False,
) -> dict[str, dict]:  # fmt: skip
    """Share of right answers by setting and task; with `intervals`, 95 % bootstrap intervals over clips as well."""
    out: dict[str, dict] = {}
    total = len(data.records)
    with model.eager():
        for setting in settings:
            right = np.full((total, len(data.records[0])), np.nan)
            task = np.full(right.shape, -1)
            for first in range(0, total, batch_clips):
                rows = slice(first, min(total, first + batch_clips))
                batch = {name: torch.from_numpy(a[rows]).to(device) for name, a in data.arrays.items()}
                said = answers(model, encoder, batch, setting, dtype)
                for clip, texts in enumerate(said, start=first):
                    for number, text in enumerate(texts):
                        if record := data.records[clip][number]:
                            right[clip, number] = is_right(text, data.texts[clip][number], record)
                            task[clip, number] = TASK_NAMES.index(record.task)
            out[setting] = _summary(right, task, intervals)
    return out


def _summary(right: np.ndarray, task: np.ndarray, intervals: bool) -> dict:
    """Mean over tasks (each the same weight) as `all`, and every task's share."""

    def shares(rows: np.ndarray) -> np.ndarray:
        hits, kinds = right[rows], task[rows]
        return np.array(
            [np.nanmean(hits[kinds == n]) if (kinds == n).any() else np.nan for n in range(len(TASK_NAMES))]
        )

    every = np.arange(len(right))
    means = shares(every)
    out = {"all": round(float(np.nanmean(means)), 4)}
    out |= {name: round(float(mean), 3) for name, mean in zip(TASK_NAMES, means, strict=True) if not np.isnan(mean)}
    if intervals:
        rng = np.random.default_rng(0)
        draws = np.stack([shares(rng.integers(0, len(right), len(right))) for _ in range(500)])
        low, high = np.nanpercentile(np.nanmean(draws, axis=1), [2.5, 97.5])
        out["interval"] = [round(float(low), 4), round(float(high), 4)]
        out["task_intervals"] = {
            name: [round(float(v), 3) for v in np.nanpercentile(draws[:, n], [2.5, 97.5])]
            for n, name in enumerate(TASK_NAMES)
            if name in out
        }
    return out


def load_checkpoint(path: Path, device: torch.device, sizes: PocketSizes | None = None) -> tuple[Pocket, Encoder]:
    """The model of a training checkpoint, or of an exported folder (which has no label heads: they are untrained)."""
    encoder = Encoder()
    model = Pocket(sizes or PocketSizes(), encoder, MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
    if path.is_dir():
        network = LlavaOnevisionForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        model.hf.load_state_dict(network.state_dict())
    else:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["model"])
    return model.to(device), encoder


@torch.no_grad()
def eyes(model: Pocket, data: ClipSet, device: torch.device, dtype: torch.dtype, clips: int = 32) -> dict[str, float]:
    """Share of patches that show something whose label the tower's heads tell right (32 clips)."""
    tables = {
        n.removeprefix("draw_"): torch.from_numpy(a[:clips]).to(device) for n, a in data.arrays.items() if "draw_" in n
    }
    raster = rasterise(tables, model.sizes.image, model.sizes.image)
    labels = patch_labels(tables, raster.owner, model.sizes.patch)
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
        "--model", type=Path, nargs="+", required=True, help="checkpoints of train.py, or exported folders"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="seeds of the clips")
    parser.add_argument("--clips", type=int, default=512, help="number of clips, 8 questions each")
    parser.add_argument("--frames", type=int, default=24, help="frames of a clip, one a second (a multiple of 8)")
    parser.add_argument("--settings", nargs="+", default=list(DEFAULT_SETTINGS), help="what to measure")
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    parser.add_argument("--json", type=Path, help="write the scores here too")
    given = parser.parse_args(argv)
    data = make_set(given.split, given.clips, given.frames, workers=given.workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cuda.enable_cudnn_sdp(False)
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result: dict = {"split": given.split, "clips": given.clips, "frames": given.frames, "first_seed": 0, "fps": 1.0,
                    "torch": torch.__version__, "precision": str(dtype).removeprefix("torch."),
                    "device": device_name, "models": {}}  # fmt: skip
    for path in given.model:
        model, encoder = load_checkpoint(path, device)
        scores = evaluate(model, encoder, data, given.settings, device, dtype, intervals=True)
        print(path.stem)
        print_table(scores)
        result["models"][path.stem] = {"answers": scores, "eyes": eyes(model, data, device, dtype)}
    print(json.dumps(result))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
