"""onlooker plan: how much memory a stream takes, and how many fit."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.core.errors import InputError


@app.command()
def plan(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shape (llava-onevision-7b, -0.5b), pocket, or a local folder.")
    ] = "llava-onevision-7b",
    fps: options.Fps = 1.0,
    keep_ratio: Annotated[float, typer.Option(help="Share of the visual tokens that the compressor keeps.")] = 0.3,
    window_tokens: Annotated[int, typer.Option(help="Tokens a stream keeps on the device (its window).")] = 5000,
    hours: Annotated[float, typer.Option(help="How long a stream lasts.")] = 1.0,
    device_gb: Annotated[float, typer.Option(help="Memory of the device, in GB (10^9 bytes).")] = 80.0,
    as_json: options.Json = False,
) -> None:
    """Work out bytes per token, frame, hour and stream, and how many streams fit on a device. Nothing is loaded."""
    from onlooker.models import shape_of

    for name, value, good in (
        ("--fps", fps, fps > 0),
        ("--keep-ratio", keep_ratio, 0 < keep_ratio <= 1),
        ("--window-tokens", window_tokens, window_tokens > 0),
        ("--hours", hours, hours > 0),
        ("--device-gb", device_gb, device_gb > 0),
    ):
        if not good:
            raise InputError(f"{name} is out of range", given=str(value), do="see onlooker plan --help")
    shape = shape_of(model)
    kept = max(1, int(shape.frame_tokens * keep_ratio))
    frames = int(hours * 3600 * fps)
    weights = shape.parameters * 2
    window = min(window_tokens, frames * kept)
    # The store holds raw keys, values, and a rotated copy of the keys for what is on the device.
    on_device = window * shape.kv_bytes_per_token * 3 // 2 + shape.reference_bytes
    parked = max(0, frames * kept - window) * shape.kv_bytes_per_token
    streams = max(0, int((device_gb * 1e9 * 0.9 - weights) // on_device))
    rows = {
        "model": shape.name,
        "parameters": shape.parameters,
        "weights_bytes": weights,
        "kv_bytes_per_token": shape.kv_bytes_per_token,
        "tokens_per_frame": shape.frame_tokens,
        "tokens_kept_per_frame": kept,
        "kv_bytes_per_frame": kept * shape.kv_bytes_per_token,
        "cacher_bytes_per_stream": shape.reference_bytes,
        "device_bytes_per_stream": on_device,
        "seconds_in_window": window / (kept * fps),
        "host_bytes_per_stream_at_end": parked,
        "streams_that_fit": streams,
    }
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("what", "how much", box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), _human(name, value))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\n16-bit weights and keys; {hours:g} h at {fps:g} fps, {window_tokens} tokens on the device; a tenth of the "
        "device is left for activations. This counts memory only: how many streams are fast enough is what "
        "[bold]onlooker bench[/] measures."
    )


def _human(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if "bytes" in name:
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{value / size:.1f} {unit}"
        return f"{value:.0f} B"
    return f"{value:,.0f}" if name != "seconds_in_window" else f"{value:,.0f} s"
