"""How the benches time, and how they report: in turns, with medians, beside the machine's description."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onlooker.cli.output import emit, note, show_table
from onlooker.core import provenance
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    import torch

    from onlooker.core.contracts import VideoModel

WARM_UPS = 3


class SkippingClock:
    """Real time, but for the moments when nobody has anything to do: those are skipped."""

    def __init__(self) -> None:
        self._skipped = -time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() + self._skipped

    def skip_to(self, moment: float) -> None:
        """Go on at this moment, if it is still to come."""
        self._skipped += max(0.0, moment - self())


@dataclass(frozen=True)
class Action:
    """Something to time: `prepare(turn)` is not timed, `run(turn, what prepare gave)` is."""

    prepare: Callable[[int], Any]
    run: Callable[[int, Any], Any]


def numbers_of(text: str) -> list[int]:
    """Whole numbers by commas. Raises `InputError` for anything else, and for numbers outside 1 to 1,000,000."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > 1_000_000:
        raise InputError("these are whole numbers from 1, by commas", given=repr(text), do="for example 1,4,16")
    return counts


def time_in_turns(
    actions: dict[str, Action], repeats: int, device: Any, on_turn: Callable[[], None]
) -> dict[str, float]:
    """Median and p95 milliseconds of actions that take turns, so that a busy machine disturbs all alike."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    spent: dict[str, list[float]] = {name: [] for name in actions}
    with torch.no_grad():
        for turn in range(repeats + WARM_UPS):
            for name, action in actions.items():
                ready = action.prepare(turn)
                wait()
                began = time.perf_counter()
                action.run(turn, ready)
                wait()
                spent[name].append((time.perf_counter() - began) * 1000)
            if turn >= WARM_UPS:
                on_turn()
    rows = {}
    for name, times in spent.items():
        kept = sorted(times[WARM_UPS:])
        rows[f"{name}_ms"] = statistics.median(kept)
        rows[f"{name}_p95_ms"] = kept[round(0.95 * (len(kept) - 1))]
    return rows


def allocation_retries(device: "torch.device") -> int:
    """How often memory was asked for and found only after what PyTorch held unused had been given back."""
    import torch

    return torch.cuda.memory_stats(device).get("num_alloc_retries", 0) if device.type == "cuda" else 0


def allocations(device: "torch.device") -> int:
    """How often memory was asked of the device itself."""
    import torch

    return torch.cuda.memory_stats(device).get("num_device_alloc", 0) if device.type == "cuda" else 0


def give_back(device: "torch.device") -> None:
    """Memory that PyTorch holds unused: a trial that found none leaves pieces in which little fits."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def machine_card(model: "VideoModel", weights: str) -> dict[str, Any]:
    """What a number means nothing without: model, hardware, versions, commit."""
    import torch

    spec = model.spec
    place = torch.cuda.get_device_name(spec.device) if spec.device.type == "cuda" else platform.machine()
    return {
        "model": spec.name,
        "weights": weights,
        "device": f"{spec.device.type} ({place})",
        "dtype": str(spec.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def show(name: str, card: dict[str, Any], rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print a bench's result: a table for people, or one JSON object."""
    if as_json:
        emit({"bench": name} | card | {"rows": rows})
        return
    for key, value in card.items():
        print(f"{_words(key)}: {value}")
    print()
    if name == "encode":
        headers = ["streams", "frame", "median ms", "p95 ms", "of dense", "FLOP floor"]
        show_table(headers, [line for row in rows for line in _encode_lines(row)], numbers=True)
        note("\nruns in turns; of dense: share of the dense time; FLOP floor: share of the dense arithmetic")
        return
    headers = ["streams", "frame tokens", "context", "step ms", "p95 ms", "a frame ms"]
    keys = ["streams", "frame_tokens", "context", "step_ms", "step_p95_ms", "per_frame_ms"]
    show_table(headers, [[_number(row[key]) for key in keys] for row in rows], numbers=True)
    note("\nmedians; a step reads one frame of every stream")


def _encode_lines(row: dict[str, Any]) -> list[list[str]]:
    lines = []
    for frame in ("dense", "refresh", "selective"):
        ms, p95 = row[f"{frame}_ms"], row[f"{frame}_p95_ms"]
        floor = row["selective_floor"] if frame == "selective" else 1.0
        lines.append([str(row["streams"]), frame, *map(_number, (ms, p95, ms / row["dense_ms"], floor))])
    if "interval_floor" in row:
        mean = row["interval_mean_of_dense"]
        cells = [_number(mean * row["dense_ms"]), "", _number(mean), _number(row["interval_floor"])]
        lines.append([str(row["streams"]), "interval mean", *cells])
    return lines


def _words(key: str) -> str:
    return key.replace("_", " ")


def _number(value: float | int) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"
