"""onlooker bench: time the encoder and the prefill on this machine, beside what arithmetic allows."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.core.errors import InputError

bench = typer.Typer(help="Time stages of the engine on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Repeats = Annotated[int, typer.Option(help="Timed repetitions; the median is reported, p95 beside it.")]


@bench.command()
def encode(
    model: options.Model = "pocket-aware",
    encoder: options.Encoder = options.DEFAULTS["encoder"],
    streams: Annotated[str, typer.Option(help="Streams in a batch, several by commas.")] = "1,4",
    repeats: Repeats = 40,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Time a frame encoded whole and a frame encoded by the chosen method, with equal treatment, in turns."""
    import torch

    from onlooker.core import registry
    from onlooker.encode.full import Full

    method, dense = registry.make("encoder", encoder), Full()
    loaded, weights = _load(model, dtype, device)
    rows = []
    with torch.no_grad():
        for count in _counts(streams):
            clip = _clip(loaded, count, 8)
            tower = loaded.tower(tuple(clip[0].shape[1:]))
            hidden = [loaded.embed_patches(pixels) for pixels in clip]
            states = [method.new_state() for _ in range(count)]
            plain = [dense.new_state() for _ in range(count)]
            method.encode(tower, hidden[0], states)
            after_refresh = [state.fork() for state in states]

            def whole(n: int) -> None:
                dense.encode(tower, hidden[n % 8], plain)  # noqa: B023 - called within this turn

            def refresh(n: int) -> None:
                method.encode(tower, hidden[n % 8], [method.new_state() for _ in range(count)])  # noqa: B023

            def selective(n: int) -> None:
                method.encode(tower, hidden[n % 7 + 1], [s.fork() for s in after_refresh])  # noqa: B023

            timed = _in_turns({"dense": whole, "refresh": refresh, "selective": selective}, repeats, loaded.spec.device)
            row = {"streams": count} | timed
            row["selective_of_dense"] = timed["selective_ms"] / timed["dense_ms"]
            interval = getattr(method, "interval", None)
            if interval:
                mean = (timed["refresh_ms"] + (interval - 1) * timed["selective_ms"]) / interval
                row["interval_mean_of_dense"] = mean / timed["dense_ms"]
            row["flop_floor_interval"] = method.cost(tower)
            rows.append(row)
    card = _card(loaded, weights) | {"encoder": registry.describe(method), "patches": tower.num_tokens}
    if hasattr(method, "recomputed_tokens"):
        one_frame = registry.make("encoder", _without_interval(method, registry))
        card["flop_floor_selective"] = one_frame.cost(tower)
    _show("encode", card, rows, as_json)


@bench.command()
def prefill(
    model: options.Model = "pocket-aware",
    tokens: Annotated[str, typer.Option(help="Visual tokens of a frame, several by commas.")] = "19,64",
    context: Annotated[int, typer.Option(help="Tokens already in memory.")] = 2000,
    streams: Annotated[str, typer.Option(help="Streams in a step, several by commas.")] = "1,4",
    repeats: Repeats = 20,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Time reading one frame of each stream into its memory, all streams in one packed pass."""
    import torch

    from onlooker.engine.packing import Work, run_pass
    from onlooker.kvstore import KVStore

    loaded, weights = _load(model, dtype, device)
    spec = loaded.spec
    rows = []
    with torch.no_grad():
        for count in _counts(streams):
            stores = [KVStore(spec, loaded.rotary) for _ in range(count)]
            filler = torch.randn(context, spec.hidden_dim, device=spec.device).to(spec.dtype) * 0.02
            for store in stores:
                for part in filler.split(500):
                    chunk = store.begin("vision", 0.0, 0.0, *loaded.place_text(len(part)))
                    run_pass(loaded, [Work(part, chunk)])
                    chunk.seal()
            for frame_tokens in _counts(tokens):
                embeddings = filler[:frame_tokens]

                def read(n: int) -> None:
                    chunks = [s.begin("vision", 1.0, 1.0, *loaded.place_text(frame_tokens)) for s in stores]  # noqa: B023
                    run_pass(loaded, [Work(embeddings, chunk) for chunk in chunks])  # noqa: B023
                    for chunk in chunks:
                        # The context stays as long as it was, so that every repetition does the same work.
                        chunk.abort()

                timed = _in_turns({"step": read}, repeats, spec.device)
                per_frame = {"frame_ms": timed["step_ms"] / count}
                rows.append({"streams": count, "frame_tokens": frame_tokens, "context": context} | timed | per_frame)
    _show("prefill", _card(loaded, weights), rows, as_json)


# ------------------------------------------------------------------------------------------------------- the parts


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError("counts are whole numbers from 1, by commas", given=text, do="for example 1,4,16")
    return counts


def _load(model: str, dtype: str, device: str) -> tuple[Any, str]:
    from onlooker import models

    if model in models.SHAPES:
        return models.random_model(model, dtype=dtype, device=device), "random"
    return models.load(model, dtype=dtype, device=device), model


def _clip(model: Any, streams: int, frames: int) -> list[Any]:
    """Pixels of moving Pocket World frames, one `[streams, channels, rows, cols]` per moment."""
    import torch

    from onlooker.world import make_episode

    shown = [
        list(make_episode(seed, "test", duration_s=float(frames)).frames(fps=1.0))[:frames] for seed in range(streams)
    ]
    return [torch.stack(model.preprocess([clip[n].image for clip in shown])) for n in range(frames)]


def _in_turns(actions: dict[str, Callable[[int], None]], repeats: int, device: Any) -> dict[str, float]:
    """Medians and p95 in milliseconds of actions that take turns, so that a busy machine disturbs all alike."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    spent: dict[str, list[float]] = {name: [] for name in actions}
    for n in range(repeats + 3):
        for name, action in actions.items():
            wait()
            began = time.perf_counter()
            action(n)
            wait()
            if n >= 3:
                spent[name].append((time.perf_counter() - began) * 1000)
    rows = {}
    for name, times in spent.items():
        rows[f"{name}_ms"] = statistics.median(times)
        rows[f"{name}_p95_ms"] = sorted(times)[int(0.95 * (len(times) - 1))]
    return rows


def _without_interval(method: Any, registry: Any) -> str:
    import dataclasses

    return registry.describe(dataclasses.replace(method, interval=None))


def _card(model: Any, weights: str) -> dict[str, Any]:
    import torch
    import transformers

    spec = model.spec
    place = torch.cuda.get_device_name(spec.device) if spec.device.type == "cuda" else platform.machine()
    return {
        "model": spec.name,
        "weights": weights,
        "device": f"{spec.device.type} ({place})",
        "dtype": str(spec.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _show(name: str, card: dict[str, Any], rows: list[dict[str, Any]], as_json: bool) -> None:
    line = json.dumps({"bench": name} | card | {"rows": rows})
    if as_json:
        print(line)
        return
    console = Console(highlight=False)
    for key, value in card.items():
        console.print(
            f"{key.replace('_', ' ')}: {value:.3f}" if isinstance(value, float) else f"{key.replace('_', ' ')}: {value}"
        )
    table = Table(*[key.replace("_", " ") for key in rows[0]], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()])
    console.print()
    console.print(table)
    console.print()
    print(line)
