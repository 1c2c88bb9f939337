"""onlooker plan: how much memory a stream takes, and how many fit."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit, note, show_table, size_text, warn
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.models import Shape

TIERS = ("device", "host")
SPARE = 0.1
"""Share of the device left for activations."""
MOST = 1e12


References = Annotated[
    Literal["int8", "int4"], typer.Option(help="How stc_cacher keeps its references (its reference_dtype).")
]


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="llava-onevision-7b, llava-onevision-0.5b, pocket, a folder; with towers: pocket+my_tower.py.",
        ),
    ] = "llava-onevision-7b",
    fps: options.Fps = 1.0,
    keep_ratio: Annotated[float, typer.Option(help="Share of the visual tokens that the compressor keeps.")] = 0.3,
    window_tokens: Annotated[int, typer.Option(help="Tokens a stream keeps on the device (its window).")] = 5000,
    kv: options.KV = "",
    arithmetic: options.Arithmetic = "model",
    references: References = "int8",
    hours: Annotated[float, typer.Option(help="How long a stream lasts.")] = 1.0,
    device_gb: Annotated[float, typer.Option(help="Memory of the device, in GB (10^9 bytes).")] = 80.0,
    measured: Annotated[
        Path | None, typer.Option(help="What bench streams --out wrote: its measured streams beside the counted ones.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Work out bytes per token, frame and stream, and how many streams fit on a device. Nothing is loaded.

    Example: onlooker plan --model llava-onevision-7b --hours 8 --device-gb 24
    """
    _check_ranges(fps, keep_ratio, window_tokens, hours, device_gb)
    from onlooker.models import shape_of

    found = None if measured is None else read_measured(measured)
    shape = shape_of(model)
    kept = max(1, int(shape.frame_tokens * keep_ratio))
    frames = max(1, int(hours * 3600 * fps))
    towers = _towers(model, shape.image_size, references)
    cacher = shape.reference_bytes({"int8": 8, "int4": 4}[references])
    weights = shape.parameters * 2 + sum(one["weights_bytes"] for one in towers)
    weights -= shape.layer_parameters if arithmetic == "fp8" else 0
    window = min(window_tokens, frames * kept)
    beside = sum(one["state_bytes"] for one in towers)
    on_device, on_host = coded_bytes(shape, kv, kept)
    coded = window // kept * on_device + window % kept * shape.kv_bytes_per_token
    on_device = coded + cacher + beside
    parked = max(0, frames - window // kept) * on_host
    room = device_gb * 1e9 * (1 - SPARE) - weights
    row: dict[str, Any] = {
        "model": shape.name,
        "parameters": shape.parameters,
        "weights_bytes": weights,
        "kv_bytes_per_token": shape.kv_bytes_per_token,
        "tokens_per_frame": shape.frame_tokens,
        "tokens_kept_per_frame": kept,
        "kv_bytes_per_frame": kept * shape.kv_bytes_per_token,
        "cacher_bytes_per_stream": cacher,
        "further_towers": towers,
        "device_bytes_per_stream": on_device,
        "seconds_in_window": window / (kept * fps),
        "host_bytes_per_stream_at_end": parked,
        "streams_that_fit": max(0, int(room // on_device)),
    }
    if found is not None:
        row["measured"] = {name: _beside(one, room) for name, one in found.items()}
    if as_json:
        emit(row)
        return
    show_table(["what", "how much"], [[name, text] for name, text in _lines(row, hours)], numbers=True)
    note(
        f"{'8-bit language layers, else 16-bit' if arithmetic == 'fp8' else '16-bit'} weights; keys and values in "
        f"{kv or '16 bits, too'}; {hours:g} h at {fps:g} fps on a device of "
        f"{device_gb:g} GB, a tenth of it left for activations.\n"
        "Memory only: whether so many streams are fast enough is what onlooker bench tells."
    )
    for name, one in row.get("measured", {}).items():
        print(
            f"measured, {name}: {size_text(one['stream_bytes'])} a stream, of which {one['streams_that_fit']:,} fit; "
            f"{one['told']}"
        )
    if room < on_device:
        what = "the weights alone do not fit" if room <= 0 else "not one stream fits"
        warn(f"{what} on a device of {device_gb:g} GB")


def _beside(one: dict[str, Any], room: float) -> dict[str, Any]:
    """A measured pipeline, as it stands beside what was counted, with so many bytes for streams."""
    return {
        "stream_bytes": one["stream_bytes"],
        "streams_that_fit": max(0, int(room // one["stream_bytes"])),
        "streams_held": one["streams"],
        "told": one["verdict"]["told"],
    }


def _towers(model: str, side: int, references: Literal["int8", "int4"]) -> list[dict[str, Any]]:
    """What each further tower behind the model's name takes: of its weights, and of each stream."""
    from onlooker.models import planned_towers

    if not (towers := planned_towers(model)):
        return []
    import numpy as np

    from onlooker.encode import STCCacher

    rows = []
    for one in towers:
        seen = one.tower(tuple(one.preprocess([np.zeros((side, side, 3), np.uint8)]).shape))
        state = STCCacher(reference_dtype=references).state_bytes(len(seen.layers), seen.num_tokens, seen.dim)
        about = {"tower": one.name, "weights_bytes": one.weights_bytes}
        rows.append(about | {"tokens": seen.num_tokens, "state_bytes": state})
    return rows


def _check_ranges(fps: float, keep_ratio: float, window_tokens: float, hours: float, device_gb: float) -> None:
    for name, value, most in (
        ("--fps", fps, MOST),
        ("--keep-ratio", keep_ratio, 1),
        ("--window-tokens", window_tokens, MOST),
        ("--hours", hours, MOST),
        ("--device-gb", device_gb, MOST),
    ):
        if not (math.isfinite(value) and 0 < value <= most):
            raise InputError(f"{name} is out of range", given=str(value), do=f"a number above 0, at most {most:g}")


def coded_bytes(shape: "Shape", kv: str, tokens: int) -> tuple[int, int]:
    """Bytes of keys and values of a frame of so many tokens on the device and on the host, at 16 bits or as `kv` says.
    Raises `InputError` for unknown tiers and codecs."""
    plain = shape.kv_bytes_per_token * tokens
    if not kv:  # a plan of the usual needs no torch
        return plain, plain
    import torch

    from onlooker.kvstore.tiers import tier_codecs

    codecs = tier_codecs(kv)
    sizes = (shape.text_layers, shape.kv_heads, tokens, shape.head_dim, torch.bfloat16)
    found = [codecs[f"{tier}_codec"].num_bytes(*sizes) if f"{tier}_codec" in codecs else plain for tier in TIERS]
    return found[0], found[1]


def read_measured(path: Path) -> dict[str, Any]:
    """The pipelines of one device's `bench streams`, by name. Raises `InputError` for another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pipelines = found["pipelines"]
        for one in pipelines.values():
            _ = float(one["stream_bytes"]) / max(1, int(one["streams"])), str(one["verdict"]["told"])
            if one["stream_bytes"] <= 0:
                raise ValueError("a stream of no bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "this is nothing that bench streams measured on one device",
            given=f"{path} ({type(error).__name__}: {str(error)[:80]})",
            do="onlooker bench streams --out FILE",
        ) from error
    return pipelines


def _lines(row: dict[str, Any], hours: float) -> list[tuple[str, str]]:
    return [
        ("model", row["model"]),
        ("parameters", f"{row['parameters']:,}"),
        ("weights", size_text(row["weights_bytes"])),
        ("keys and values of a token", size_text(row["kv_bytes_per_token"])),
        ("tokens of a frame, seen", f"{row['tokens_per_frame']:,}"),
        ("tokens of a frame, kept", f"{row['tokens_kept_per_frame']:,}"),
        ("keys and values of a frame", size_text(row["kv_bytes_per_frame"])),
        ("a stream's encoder reference (stc_cacher)", size_text(row["cacher_bytes_per_stream"])),
        *[(f"the same in the tower {one['tower']}", size_text(one["state_bytes"])) for one in row["further_towers"]],
        ("a stream on the device, in all", size_text(row["device_bytes_per_stream"])),
        ("time its window spans", f"{row['seconds_in_window']:,.0f} s"),
        (f"a stream parked on the host after {hours:g} h", size_text(row["host_bytes_per_stream_at_end"])),
        ("streams that fit", f"{row['streams_that_fit']:,}"),
    ]
