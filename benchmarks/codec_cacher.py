"""Tokens that the video's encoder chooses against tokens that keys choose, at the same budget.

    python -m benchmarks.codec_cacher footage CLIP.mp4 ... --out rows.jsonl
    python -m benchmarks.codec_cacher world --clips 24 --level L2 --out rows.jsonl

*footage*: relative error of the tower's output against dense on video files, two frames a second, frames that are
computed whole left out. *world*: Pocket World clips that went through an H.264 encoder at 25 pictures a second
(`--rate`), read back at one a second: the error, and the answers to eight questions each. Every form recomputes as many
tokens; `random` draws them. `fallbacks` is the share of frames of which the encoder said nothing.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.frame import Frame
from onlooker.encode import STCPublished
from onlooker.encode._selection import Picked, least_alike
from onlooker.encode.full import Full
from onlooker.engine import Engine
from onlooker.engine.hints import hand_on
from onlooker.engine.seeing import Patch
from onlooker.evals.replay import replay
from onlooker.evals.score import worth
from onlooker.evals.suites import items
from onlooker.video import open_video

FORMS = ("per_layer", "shared", "patch", "codec", "random")


@dataclass(frozen=True)
class Drawn(STCPublished):
    """As many tokens, drawn at random."""

    def _choose(
        self, tower: Any, feature: Tensor, old: Any, gate: int, new: Any, moved: Tensor | None = None
    ) -> Picked:
        lots = torch.rand(feature.shape[:2], generator=torch.Generator().manual_seed(int(feature.abs().sum())))
        found = least_alike(lots, self.recomputed_tokens(tower), tower.group, tower.pinned)
        return Picked.of(*found, feature.shape[1])


def method(form: str, interval: int) -> STCPublished:
    """A form at the paper's quarter of the tokens."""
    if form == "random":
        return Drawn(interval=interval, selection="patch")
    return registry.make("encoder", f"stc_published:interval={interval},selection={form}")


@torch.no_grad()
def error(model: Any, frames: Sequence[Frame], encoder: STCPublished) -> tuple[float, float]:
    """Mean relative error of the frames in between, and the share of them of which nothing was said."""
    state, dense, errors = encoder.new_state(), Full(), []
    for frame in frames:
        (pixels,) = model.preprocess([frame.image])
        tower, hidden = model.tower(tuple(pixels.shape)), model.embed_patches(pixels[None])
        if encoder.hears_codec or encoder.sees_pictures:
            hand_on(encoder, [Patch((frame,))], [{"encoder": state}], tower, hidden.device)
        got = encoder.encode(tower, hidden, [state])
        if got.refreshed[0]:
            continue
        true = dense.encode(tower, hidden, [state]).hidden
        errors.append(float((got.hidden - true).norm() / true.norm()))
    between = max(1, len(errors))
    return sum(errors) / between, state.num_fallbacks / between


def encoded(frames: Iterator[Frame], path: Path, rate: int) -> Path:
    """Pictures through an H.264 encoder, as a camera sends them: no B-pictures, an I-picture every ten seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"g": str(10 * rate), "bf": "0", "crf": "20", "sc_threshold": "0"}
        )
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.image.shape[:2]
                stream.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def read(path: Path | str, fps: float, most: int = 10**9) -> list[Frame]:
    """Frames with what their encoder said."""
    with open_video(str(path), fps=fps, codec=True) as source:
        return [frame for frame, _ in zip(source, range(most), strict=False)]


def add(path: str, row: dict[str, Any]) -> None:
    """One line, told and kept."""
    row |= {"commit": provenance.commit(), "versions": provenance.versions()}
    print(json.dumps(row), flush=True)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def footage(options: argparse.Namespace) -> None:
    """The error on video files."""
    model = models.load(options.model)
    for clip in options.clip:
        frames = read(clip, 2.0, options.frames)
        for interval in (4, 8):
            for form in FORMS:
                wrong, silent = error(model, frames, method(form, interval))
                where = {"what": "footage", "clip": Path(clip).name, "frames": len(frames), "interval": interval}
                found = {"selection": form, "error": round(wrong, 5), "fallbacks": round(silent, 4)}
                add(options.out, where | found | {"model": options.model})


def world(options: argparse.Namespace) -> None:
    """The error and the answers on encoded Pocket World."""
    model, chosen = models.load(options.model), list(items("pocketworld", 8 * options.clips, 2**33, options.level))
    with tempfile.TemporaryDirectory() as folder:
        shown = []
        for number, item in enumerate(chosen):
            rate = options.rate
            frames = read(encoded(item.open(float(rate)), Path(folder) / f"{number}.mp4", rate), 1.0)
            shown.append(replace(item, open=lambda fps, frames=frames: iter(frames)))
    seen = [list(item.open(1.0)) for item in shown]
    for interval in (4, 8):
        for form in FORMS if options.errors else ("full", *FORMS):
            encoder = registry.make("encoder", "full") if form == "full" else method(form, interval)
            marks = []
            if not options.errors:
                engine = Engine(model, encoder=encoder, compressor="identity", memory="full")
                marks = [worth(outcome) or 0.0 for outcome in replay(engine, shown)]
            both = [(0.0, 0.0)] if form == "full" else [error(model, frames, encoder) for frames in seen]
            wrong, silent = (sum(part) / len(both) for part in zip(*both, strict=True))
            where = {"what": "world", "level": options.level, "clips": len(shown), "interval": interval}
            found = {"selection": form, "error": round(wrong, 5), "fallbacks": round(silent, 4)}
            answers = {"right": sum(marks) / len(marks), "worth": marks} if marks else {}
            add(options.out, where | found | {"rate": options.rate, "model": options.model} | answers)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["footage", "world"])
    parser.add_argument("clip", nargs="*")
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--level", default="L2")
    parser.add_argument("--rate", type=int, default=25, help="pictures a second that are encoded")
    parser.add_argument("--errors", action="store_true", help="no answers")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    (footage if options.what == "footage" else world)(options)


if __name__ == "__main__":
    main()
