"""Tokens that the video's encoder chooses against tokens that keys choose, at the same budget.

    python -m benchmarks.codec_cacher footage CLIP.mp4 ... --out rows.jsonl
    python -m benchmarks.codec_cacher world --clips 24 --level L2 --out rows.jsonl
    python -m benchmarks.codec_cacher pack --clips 24 --level L2 --out clips.npz  # then: world --packed clips.npz
    python -m benchmarks.codec_cacher branches --clips 24 --level L2 --out rows.jsonl

*footage*: relative error of the tower's output against dense on video files, two frames a second, frames that are
computed whole left out. *world*: Pocket World clips that went through an H.264 encoder at 25 pictures a second
(`--rate`), read back at one a second: the error, and the answers to eight questions each. Every form recomputes as many
tokens; `random` draws them. Behind a + is what moves the reference along before anything is compared with it.
`fallbacks` is the share of frames of which the encoder said nothing, `ms` the tower's time for a frame that is not
computed whole (on a CPU process time of one thread; on a GPU by the wall, one stream at a time and without graphs),
`dense_ms` that of one that is. `--errors` and `--answers` leave the other out. *branches*: the same for which branch of
a layer is reused, and what change is measured on (the paper's own ablation), with `cost`, the share of the dense
tower's work. *pack* writes the encoded clips, and what was said of them, for a machine that has no decoder.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.codec import CodecRecord
from onlooker.core.frame import Frame
from onlooker.encode import STCPublished
from onlooker.encode._selection import Picked, least_alike
from onlooker.encode.full import Full
from onlooker.engine import Engine
from onlooker.engine.hints import hand_on
from onlooker.engine.seeing import Patch
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.score import worth
from onlooker.evals.suites import items
from onlooker.video import open_video

FORMS = ("per_layer", "shared", "patch", "codec", "random")
MOVED = ("per_layer+codec", "per_layer+search", "patch+codec", "codec+codec", "codec+search")
BRANCHES = tuple(
    f"reused={branch},feature={gate}" for branch in ("both", "attention", "mlp") for gate in ("key", "value", "hidden")
)


@dataclass(frozen=True)
class Drawn(STCPublished):
    """As many tokens, drawn at random."""

    def _choose(
        self, tower: Any, feature: Tensor, old: Any, gate: int, new: Any, moved: Tensor | None = None
    ) -> Picked:
        seeded = torch.Generator().manual_seed(int(feature.abs().sum()))
        lots = torch.rand(feature.shape[:2], generator=seeded).to(feature.device)
        found = least_alike(lots, self.recomputed_tokens(tower), tower.group, tower.pinned)
        return Picked.of(*found, feature.shape[1])


def method(form: str, interval: int) -> STCPublished:
    """A form at the paper's quarter of the tokens."""
    if form == "random":
        return Drawn(interval=interval, selection="patch")
    selection, _, motion = form.partition("+")
    what = form if "=" in form else f"selection={selection},motion={motion or 'none'}"
    return registry.make("encoder", f"stc_published:interval={interval},{what}")


@dataclass
class Watched:
    """What the frames between whole ones came to."""

    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    dense_seconds: list[float] = field(default_factory=list)
    silent: int = 0

    def row(self) -> dict[str, float]:
        """Means, of a frame."""
        count = max(1, len(self.errors))
        return {
            "error": round(sum(self.errors) / count, 5),
            "fallbacks": round(self.silent / count, 4),
            "ms": round(1000 * sum(self.seconds) / count, 3),
            "dense_ms": round(1000 * sum(self.dense_seconds) / count, 3),
        }


def _now(device: torch.device) -> float:
    """Seconds, of the process or, behind all that the device was asked to do, of the wall."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def watch(model: Any, clips: Sequence[Sequence[Frame]], encoder: STCPublished) -> dict[str, float]:
    """Errors against dense, and what they took."""
    found, dense = Watched(), Full()
    for frames in clips:
        state = encoder.new_state()
        for frame in frames:
            (pixels,) = model.preprocess([frame.image])
            tower, hidden = model.tower(tuple(pixels.shape)), model.embed_patches(pixels[None])
            began = _now(hidden.device)
            if encoder.hears_codec or encoder.sees_pictures:
                hand_on(encoder, [Patch((frame,))], [{"encoder": state}], tower, hidden.device)
            got = encoder.encode(tower, hidden, [state])
            ended = _now(hidden.device)
            if got.refreshed[0]:
                continue
            true = dense.encode(tower, hidden, [state]).hidden
            found.dense_seconds.append(_now(hidden.device) - ended)
            found.seconds.append(ended - began)
            found.errors.append(float((got.hidden - true).norm() / true.norm()))
        found.silent += state.num_fallbacks
    return found.row()


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
            for form in (*FORMS, *MOVED):
                where = {"what": "footage", "clip": Path(clip).name, "frames": len(frames), "interval": interval}
                found = {"selection": form} | watch(model, [frames], method(form, interval))
                add(options.out, where | found | {"model": options.model})


def chosen(options: argparse.Namespace) -> list[Item]:
    """Pocket World clips, eight questions each."""
    return list(items("pocketworld", 8 * options.clips, 2**33, options.level))


def clips_of(options: argparse.Namespace) -> list[list[Frame]]:
    """Their frames as a decoder gives them, one a second."""
    if options.packed:
        return unpacked(options.packed)[: options.clips]
    if options.workers == 1:
        return [clip_of(options, number) for number in range(len(chosen(options)))]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(clip_of, options), range(len(chosen(options)))))


def clip_of(options: argparse.Namespace, number: int) -> list[Frame]:
    """One of them."""
    with tempfile.TemporaryDirectory() as folder:
        shown = chosen(options)[number].open(float(options.rate))
        return read(encoded(shown, Path(folder) / "clip.mp4", options.rate), 1.0)


def pack(options: argparse.Namespace) -> None:
    """Frames and what was said of them, as a file."""
    held: dict[str, np.ndarray] = {}
    for number, frames in enumerate(clips_of(options)):
        records = [frame.codec for frame in frames if frame.codec is not None]
        assert len(records) == len(frames), "a decoder that says nothing"
        blank = next(record.motion for record in records if record.motion is not None) * 0
        told = [record.motion is not None for record in records]
        held[f"{number}.images"] = np.stack([frame.image for frame in frames])
        held[f"{number}.times"] = np.array([frame.time_s for frame in frames])
        held[f"{number}.counts"] = np.array([[r.num_pictures, r.num_intra, r.num_bytes] for r in records])
        held[f"{number}.types"] = np.array([record.frame_type for record in records])
        held[f"{number}.told"] = np.array(told)
        held[f"{number}.motion"] = np.stack([blank if r.motion is None else r.motion for r in records])
        held[f"{number}.known"] = np.stack([blank[..., 0] if r.known is None else r.known for r in records])
    np.savez_compressed(options.out, allow_pickle=False, **held)


def unpacked(path: str) -> list[list[Frame]]:
    """What `pack` wrote."""
    held, found = np.load(path), []
    for number in range(len({name.partition(".")[0] for name in held})):
        images, times, counts, types, told, motion, known = (
            held[f"{number}.{name}"] for name in ("images", "times", "counts", "types", "told", "motion", "known")
        )
        rows = zip(types, counts.tolist(), told, motion, known, strict=True)
        records = [
            CodecRecord(str(kind), pictures, intra, size, way if there else None, sure if there else None)
            for kind, (pictures, intra, size), there, way, sure in rows
        ]
        shown = zip(images, times, records, strict=True)
        found.append([Frame(image, float(time_s), codec=record) for image, time_s, record in shown])
    return found


def asked(options: argparse.Namespace, clips: list[list[Frame]], form: str, interval: int) -> dict[str, Any]:
    """One form on all clips: errors and answers."""
    torch.set_num_threads(1)
    model, encoder = models.load(options.model), Full() if form == "full" else method(form, interval)
    row = {"what": options.what, "level": options.level, "clips": len(clips), "interval": interval, "selection": form}
    if isinstance(encoder, STCPublished) and not options.answers:
        (pixels,) = model.preprocess([clips[0][0].image])
        row |= watch(model, clips, encoder) | {"cost": round(encoder.cost(model.tower(tuple(pixels.shape))), 4)}
    if not options.errors:
        shown = [
            replace(item, open=lambda fps, frames=frames: iter(frames))
            for item, frames in zip(chosen(options), clips, strict=False)
        ]
        engine = Engine(model, encoder=encoder, compressor="identity", memory="full")
        marks = [worth(outcome) or 0.0 for outcome in replay(engine, shown, parallel=len(shown))]
        row |= {"right": sum(marks) / len(marks), "worth": marks}
    return row | {"rate": options.rate, "model": options.model, "card": card_of(model.spec.device)}


def card_of(device: torch.device) -> str:
    """What measured it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}), one thread"


def world(options: argparse.Namespace) -> None:
    """Errors and answers on encoded Pocket World."""
    clips = clips_of(options)
    forms = BRANCHES if options.what == "branches" else (*FORMS, *MOVED)
    forms = options.forms.split(",") if options.forms else forms
    jobs = [("full", 0)] * (not options.errors) + [(form, interval) for interval in (4, 8) for form in forms]
    if options.workers == 1:
        for form, interval in jobs:
            add(options.out, asked(options, clips, form, interval))
        return
    with ProcessPoolExecutor(options.processes or options.workers, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(asked, options, clips, *job) for job in jobs]):
            add(options.out, done.result())


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["footage", "world", "branches", "pack"])
    parser.add_argument("clip", nargs="*")
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--level", default="L2")
    parser.add_argument("--rate", type=int, default=25, help="pictures a second that are encoded")
    parser.add_argument("--errors", action="store_true", help="no answers")
    parser.add_argument("--answers", action="store_true", help="no errors")
    parser.add_argument("--forms", default="", help="some forms only, with commas between")
    parser.add_argument("--packed", default="", help="a file of `pack`, of at least as many clips of the same level")
    parser.add_argument("--workers", type=int, default=1, help="that make the clips, and measure")
    parser.add_argument("--processes", type=int, default=0, help="that measure, if they are fewer: those on one GPU")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    {"footage": footage, "pack": pack}.get(options.what, world)(options)


if __name__ == "__main__":
    main()
