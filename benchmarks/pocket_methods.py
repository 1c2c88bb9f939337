"""Which encoder and pruner settings cost what on the pocket models, whole clips at a time.

    python -m benchmarks.pocket_methods --model onlooker/models/pocket onlooker/models/pocket_aware

The encoder and compressor are the package's own, run frame by frame over many clips side by side; the decoder reads
each clip's kept tokens once for all its questions, with full memory. `onlooker eval` is the same measurement through
the engine, slower and with every memory policy; this one is quick enough to try ideas.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onlooker.core import registry
from onlooker.core.contracts import Compressor, EncoderAccelerator
from onlooker.core.tokens import VisualTokens
from onlooker.models.llava_onevision import Vision
from onlooker.world import rasterise
from recipes.pocket.data import ANSWER_TOKENS, TASK_NAMES, ClipSet, make_set
from recipes.pocket.evaluate import _summary, is_right, print_table
from recipes.pocket.model import Pocket, PocketSizes
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder

PUBLISHED = "stc_cacher:interval=4,recompute_ratio=0.25"
ENCODERS = (
    *(f"stc_cacher:interval={n},recompute_ratio=0.25" for n in (2, 4, 8, 0)),
    *(f"stc_cacher:interval=4,recompute_ratio={r}" for r in (0.1, 0.5)),
    *(f"{PUBLISHED},{extra}" for extra in (
        "reference=rolling", "selection=shared", "selection=patch", "selection=patch,reference=rolling",
        "feature=hidden", "feature=value", "metric=l2", "metric=l2,feature=hidden",
        "correct_stale=0.5", "correct_stale=1.0", "dense_tail_layers=1", "global_tokens=8", "global_tokens=16",
        "reference=rolling,age_weight=0.02", "refresh_on_cut=0.9", "refresh_on_cut=0.95",
        "selection=patch,reference=rolling,metric=l2",
    )),
)  # fmt: skip
COMPRESSORS = (
    "stc_pruner", "stc_pruner:score=gaussian", "uniform", "random:seed=0", "random:seed=1", "random:seed=2", "oracle",
)  # fmt: skip
KEEPS = (0.3, 0.15, 0.08)


def settings(quick: bool) -> Iterable[tuple[str, str, float]]:
    """(encoder, compressor, share of tokens kept) of everything that is measured."""
    yield "full", "identity", 1.0
    for encoder in ENCODERS[:4] if quick else ENCODERS:
        yield encoder, "identity", 1.0
    for keep in KEEPS[:1] if quick else KEEPS:
        for compressor in COMPRESSORS:
            yield "full", compressor, keep
    for encoder in (PUBLISHED, f"{PUBLISHED},selection=patch,reference=rolling"):
        for compressor in COMPRESSORS:
            yield encoder, compressor, 0.3


@torch.no_grad()
def encode(vision: Vision, method: EncoderAccelerator, pixels: Tensor) -> Tensor:
    """Tower output `[clips, frames, tokens, dim]` of pixels `[clips, frames, channels, rows, cols]`, frame by frame."""
    states = [method.new_state() for _ in range(len(pixels))]
    out = []
    for frame in pixels.unbind(1):
        out.append(method.encode(vision.tower, vision.embed_patches(frame), states).hidden)
    return torch.stack(out, 1)


@torch.no_grad()
def keep_mask(method: Compressor, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """What a compressor keeps, bool `[clips, frames, tokens]` of features `[clips, frames, tokens, dim]`."""
    clips, frames, tokens, _ = features.shape
    states = [method.new_state() for _ in range(clips)]
    keep = torch.zeros(clips, frames, tokens, dtype=torch.bool, device=features.device)
    for number in range(frames):
        batch = [VisualTokens.of_frame(features[c, number], grid, number, float(number)) for c in range(clips)]
        for clip, kept in enumerate(method.compress_streams(batch, states)):
            keep[clip, number, kept.slot] = True
    return keep


def oracle_mask(owner: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """The tokens that cover most of what the world's sprites show, bool `[clips, frames, tokens]`."""
    shown = (owner >= 0).float()
    cover = torch.nn.functional.adaptive_avg_pool2d(shown, grid).flatten(2)
    return cover.argsort(dim=2, descending=True, stable=True).argsort(dim=2) < count


@torch.no_grad()
def greedy(
    model: Pocket, encoder: Encoder, batch: dict[str, Tensor], features: Tensor, keep: Tensor
) -> list[list[str]]:
    """Greedy answers to every question of the clips."""
    clips, frames = features.shape[:2]
    shown = torch.ones(clips, frames, dtype=torch.bool, device=features.device)
    most = int(keep.sum(2).max())
    stream = model.pack(features, keep, batch["clock"].long(), shown, model.stream_length(frames, most))
    ids, start, asked = batch["ids"].long(), batch["rows"][..., 0].long(), batch["asked"].long()
    ids = torch.where(torch.arange(ids.shape[2], device=ids.device) >= start[..., None], encoder.pad, ids)
    said = []
    for number in range(ANSWER_TOKENS):
        states = model.read(stream, ids, asked)
        row = (start + number).clamp(max=ids.shape[2] - 1)[..., None]
        scores = model.logits(states.gather(2, row[..., None].expand(-1, -1, -1, states.shape[-1])))
        token = scores[:, :, 0].argmax(-1, keepdim=True)
        said.append(token)
        ids = ids.scatter(2, row, token)
    return [[encoder.decode(row) for row in clip] for clip in torch.cat(said, dim=2).tolist()]


class Bench:
    """One model on one set of clips; dense features are made once per batch and encoder."""

    def __init__(self, model: Pocket, encoder: Encoder, data: ClipSet, device: torch.device, batch_clips: int) -> None:
        self.model, self.encoder, self.data, self.device, self.size = model, encoder, data, device, batch_clips
        self.vision = Vision(model.hf)
        self._features: dict[tuple[str, int], Tensor] = {}

    def run(self, encoder: str, compressor: str, keep: float) -> dict:
        """Accuracy by task with intervals, tokens kept per frame, and the encoder's counted cost."""
        method = registry.make("encoder", encoder)
        total = len(self.data.records)
        right = np.full((total, len(self.data.records[0])), np.nan)
        task = np.full(right.shape, -1)
        kept = 0.0
        for first in range(0, total, self.size):
            rows = slice(first, min(total, first + self.size))
            batch = {name: torch.from_numpy(a[rows]).to(self.device) for name, a in self.data.arrays.items()}
            tables = {name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")}
            raster = rasterise(tables, self.model.sizes.image, self.model.sizes.image)
            pixels = raster.images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
            if (encoder, first) not in self._features:
                hidden = encode(self.vision, method, pixels)
                self._features = {k: v for k, v in self._features.items() if k[0] == encoder}
                self._features[encoder, first] = torch.stack([self.vision.project(one) for one in hidden.unbind(1)], 1)
            features = self._features[encoder, first]
            mask = self._mask(compressor, keep, features, raster.owner)
            kept += mask.float().sum().item()
            for clip, texts in enumerate(greedy(self.model, self.encoder, batch, features, mask), start=first):
                for number, text in enumerate(texts):
                    if record := self.data.records[clip][number]:
                        right[clip, number] = is_right(text, self.data.texts[clip][number], record)
                        task[clip, number] = TASK_NAMES.index(record.task)
        frames = self.data.arrays["clock"].shape[1]
        return _summary(right, task, True) | {
            "encoder": encoder, "compressor": compressor, "keep_ratio": keep,
            "kept_per_frame": round(kept / (total * frames), 2), "cost": round(method.cost(self.vision.tower), 4),
        }  # fmt: skip

    def _mask(self, compressor: str, keep: float, features: Tensor, owner: Tensor) -> Tensor:
        grid, tokens = self.vision.grid, features.shape[2]
        if compressor == "oracle":
            return oracle_mask(owner, grid, max(1, int(keep * tokens)))
        if compressor == "identity":
            return torch.ones(features.shape[:3], dtype=torch.bool, device=features.device)
        joint = ":" if ":" not in compressor else ","
        return keep_mask(registry.make("compressor", f"{compressor}{joint}keep_ratio={keep}"), features, grid)


def load(path: Path, device: torch.device) -> tuple[Pocket, Encoder]:
    """A checkpoint of training (.pt) or an exported folder."""
    encoder = Encoder()
    model = Pocket(PocketSizes(), encoder, MAX_VOCABULARY, (11, 9, 37))
    if path.is_dir():
        from safetensors.torch import load_file

        wanted = type(model.hf).from_pretrained(path, dtype=torch.float32)
        model.hf.load_state_dict(wanted.state_dict())
        assert load_file(path / "model.safetensors"), "an exported folder holds its weights in one file"
    else:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["model"])
    return model.to(device).eval(), encoder


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="exported folders or checkpoints")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--clips", type=int, default=384, help="clips of 24 s, 8 questions each")
    parser.add_argument("--batch", type=int, default=96, help="clips side by side")
    parser.add_argument("--workers", type=int, default=0, help="processes that make clips")
    parser.add_argument("--quick", action="store_true", help="the main settings only")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    data = make_set(given.split, given.clips, 24, workers=given.workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    place = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result: dict = {"bench": "pocket_methods", "split": given.split, "clips": given.clips, "device": place}
    result |= {"torch": torch.__version__, "models": {}}
    for path in given.model:
        bench = Bench(*load(path, device), data, device, given.batch)
        rows = []
        for encoder, compressor, keep in settings(given.quick):
            began = time.perf_counter()
            rows.append(bench.run(encoder, compressor, keep) | {"seconds": round(time.perf_counter() - began, 1)})
        print(path)
        shown = {f"{r['encoder'].replace('stc_cacher:', '')} | {r['compressor']} {r['keep_ratio']}": r for r in rows}
        print_table(shown)
        result["models"][path.stem] = rows
    line = json.dumps(result)
    print(line if len(line) < 3000 else f"{line[:200]}... ({len(line)} characters, see --json)")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(line + "\n")


if __name__ == "__main__":
    main()
