"""A file watched by a model: decoding and computing each by itself, and both at once, as `onlooker ask FILE` does it.

    python -m benchmarks.ask_files film.mp4 --model llava-onevision-7b --dtype bfloat16 --workers 1,0

Without a file a noisy 1080p film of `--seconds` is encoded first. `decode_s`: all frames decoded and resized, nobody
looks at them. `compute_s`: the same frames, from memory, encoded, compressed and read, so many of them in one pass as
`together` says; `prefill_s`: the share of that which reads them. `total_s`: the command's way, with frames read ahead
while the model works. `over` is how much longer that takes than the longer of the two. Passes are counted: with a
memory that evicts between frames they stay one a frame.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.decode_files import make_film
from onlooker.cli.bench import load_for_timing
from onlooker.cli.sources import Reading, open_source, read_ahead
from onlooker.core import provenance
from onlooker.core.events import SessionStats
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.video.parallel import cores


def watch(engine: Engine, frames: Iterable[Frame], together: int) -> tuple[float, int, SessionStats]:
    """Push frames into a session and wait for the last: the seconds, the language passes, and what was counted."""
    passes, began = engine.passes.counts.passes, time.perf_counter()
    with engine.open() as session:
        for _ in session.push_many(frames, together=together):
            pass
        engine.wait()
        return time.perf_counter() - began, engine.passes.counts.passes - passes, session.stats()


def keep(row: dict[str, Any], out: str) -> None:
    """Print a row, and add it to a file if there is one."""
    print(json.dumps(row), flush=True)
    if out:
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--workers", default="1,0", help="decoders; 0: as the command chooses")
    parser.add_argument("--together", default="1,16", help="frames in one pass; the first is what others compare with")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--encoder", default="full")
    parser.add_argument("--compressor", default="stc_pruner")
    parser.add_argument("--memory", default="quickprefill:keep_ratio=0.5")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    model, weights = load_for_timing(given.model, given.dtype, given.device)
    engine = Engine(model, encoder=given.encoder, compressor=given.compressor, memory=given.memory)
    resize = engine.resize
    with tempfile.TemporaryDirectory() as folder:
        path = given.file or make_film(Path(folder) / "film.mp4", given.seconds)
        for workers in map(int, given.workers.split(",")):
            reading = Reading(workers=workers)
            began = time.perf_counter()
            with (
                open_source(str(path), given.fps, reading=reading) as opened,
                read_ahead(opened, resize) as all_,
            ):
                frames = list(all_)
            decode_s = time.perf_counter() - began
            for together in map(int, given.together.split(",")):
                watch(engine, frames[:32], together)  # whatever is made the first time
                compute_s, passes, stats = watch(engine, frames, together)
                began = time.perf_counter()
                with (
                    open_source(str(path), given.fps, reading=reading) as opened,
                    read_ahead(opened, resize) as all_,
                ):
                    watch(engine, all_, together)
                total_s = time.perf_counter() - began
                row = {
                    "bench": "ask_files", "file": path.name, "seconds": opened.duration_s, "frames": stats.frames,
                    "workers": workers, "cores": cores(), "model": given.model, "weights": weights,
                    "dtype": str(model.spec.dtype).removeprefix("torch."), "device": engine.device.type,
                    "encoder": given.encoder, "memory": given.memory, "together": together,
                    "frames_together": stats.frames_together, "passes": passes, "decode_s": round(decode_s, 2),
                    "compute_s": round(compute_s, 2), "prefill_s": round(stats.stage_s["prefill"], 2),
                    "total_s": round(total_s, 2), "over": round(total_s / max(decode_s, compute_s) - 1, 3),
                    "commit": provenance.commit(), "versions": provenance.versions(),
                }  # fmt: skip
                keep(row, given.out)


if __name__ == "__main__":
    main()
