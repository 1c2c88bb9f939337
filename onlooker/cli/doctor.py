"""onlooker doctor: check that everything is here, and say what runs where."""

import importlib.metadata
import os
import platform
import time

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit, show_table
from onlooker.core.errors import ModelError, OnlookerError

PACKAGES = ("onlooker", "torch", "transformers", "numpy", "av", "pillow", "safetensors", "tokenizers", "typer", "rich")


@app.command()
def doctor(model: options.Model = "pocket-aware", as_json: options.Json = False) -> None:
    """Check the installation: versions, devices, decoding, and a question put to the model.

    Example: onlooker doctor --model my_checkpoint
    """
    checks = [_versions(), _devices(), _decoding(), _answering(model)]
    if as_json:
        emit({name: {"ok": ok, "found": found} for name, ok, found in checks})
    else:
        show_table(["check", "", "found"], [[name, "ok" if ok else "FAILED", found] for name, ok, found in checks])
    failed = [name for name, ok, _ in checks if not ok]
    if failed and as_json:
        raise typer.Exit(ModelError.exit_code)
    if failed:
        raise ModelError("the installation is not complete", given=", ".join(failed), do="see the lines marked FAILED")


Check = tuple[str, bool, str]


def _versions() -> Check:
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    return (
        "packages",
        not missing,
        f"python {platform.python_version()}, {text}" + (f"; missing: {missing}" if missing else ""),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Check:
    import torch

    found = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    found += [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return "devices", True, ", ".join(found)


def _decoding() -> Check:
    import io

    import av
    import numpy as np

    from onlooker.video import open_video

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(8):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 30, np.uint8), format="rgb24")
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with open_video(buffer, fps=None) as video:
        times = [frame.time_s for frame in video]
    ok = len(times) == 8 and abs(times[-1] - 1.75) < 1e-3
    return "video", ok, f"H.264: {len(times)} of 8 frames came back, the last at {times[-1] if times else 0:.2f} s"


def _answering(model: str) -> Check:
    from onlooker.cli.sources import open_source
    from onlooker.engine import Engine

    try:
        began = time.perf_counter()
        engine = Engine.from_pretrained(model)
        with engine.open() as session, open_source("synthetic:0:6", 1.0) as opened:
            for frame in opened.frames:
                session.push(frame)
            answer = session.ask("how many objects are visible now?", max_new_tokens=8)
    except OnlookerError as error:
        return "model", False, str(error)
    return (
        "model",
        True,
        f"{model} watched 6 s of Pocket World and said {answer.text!r}, all in {time.perf_counter() - began:.1f} s",
    )
