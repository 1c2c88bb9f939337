"""A file watched by a model: decoding and computing each by itself, and both at once, as `onlooker ask FILE` does it.

    python -m benchmarks.ask_files film.mp4 --model llava-onevision-7b --dtype bfloat16 --workers 1,0

Without a file a noisy 1080p film of `--seconds` is encoded first. `decode_s`: all frames decoded and resized, nobody
looks at them. `compute_s`: the same frames, from memory, encoded, compressed and read. `total_s`: the command's way,
with frames read ahead while the model works. `over` is how much longer that takes than the longer of the two.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.decode_files import make_film
from onlooker.cli.bench import load_for_timing
from onlooker.cli.sources import Reading, open_source, read_ahead
from onlooker.core import provenance
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.video.parallel import cores


def watch(engine: Engine, frames: Iterable[Frame]) -> int:
    """Push frames into a session and wait for the last; how many there were."""
    count = 0
    with engine.open() as session:
        for frame in frames:
            session.push(frame)
            count += 1
        engine.wait()
    return count


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--workers", default="1,0", help="decoders; 0: as the command chooses")
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
            watch(engine, frames[:8])  # whatever is made the first time
            began = time.perf_counter()
            count = watch(engine, frames)
            compute_s = time.perf_counter() - began
            began = time.perf_counter()
            with (
                open_source(str(path), given.fps, reading=reading) as opened,
                read_ahead(opened, resize) as all_,
            ):
                watch(engine, all_)
            total_s = time.perf_counter() - began
            row = {
                "bench": "ask_files", "file": path.name, "seconds": opened.duration_s, "frames": count,
                "workers": workers, "cores": cores(), "model": given.model, "weights": weights,
                "dtype": str(model.spec.dtype).removeprefix("torch."), "device": engine.device.type,
                "memory": given.memory, "decode_s": round(decode_s, 2), "compute_s": round(compute_s, 2),
                "total_s": round(total_s, 2), "over": round(total_s / max(decode_s, compute_s) - 1, 3),
                "commit": provenance.commit(), "versions": provenance.versions(),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            if given.out:
                with Path(given.out).open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
