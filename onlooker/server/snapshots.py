"""Sessions on disk: tensors as safetensors, everything else as JSON beside them, and nothing that could run code."""

import contextlib
import dataclasses
import json
import secrets
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.events import SessionStats
from onlooker.engine import Engine, Session
from onlooker.server.keys import Caller
from onlooker.server.refusals import Refusal

FORMAT = 1
_PARTS = ("store", "encoder", "compressor", "memory")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A session's memory: tensors by name, and JSON-able facts."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


def take(engine: Engine, session: Session) -> Snapshot:
    """A copy of what a session remembers; on the worker's thread.

    Raises `InputError` for memories that hold pictures.
    """
    if engine.memory.rereads:
        raise InputError(
            "this memory holds pictures and cannot be saved",
            given=registry.describe(engine.memory),
            do="use another memory",
        )
    tensors: dict[str, torch.Tensor] = {}
    skeletons: dict[str, Any] = {}
    for part, holder in _holders(session).items():
        held, skeletons[part] = holder.export()
        # A copy each: safetensors refuses tensors that share memory, and the stream goes on.
        tensors |= {f"{part}/{name}": tensor.to("cpu", copy=True).contiguous() for name, tensor in held.items()}
    facts = {
        "format": FORMAT,
        "made_by": _made_by(engine),
        "time_s": session.time_s,
        "frames": session.frames,
        "totals": dataclasses.asdict(session.totals),
        "parts": skeletons,
    }
    return Snapshot(tensors, facts)


def put_back(engine: Engine, snapshot: Snapshot, trace: bool) -> Session:
    """A session that goes on where the snapshot was taken; on the worker's thread.

    Raises `InputError` when it was taken with another model or other methods.
    """
    facts = snapshot.facts
    if facts.get("format") != FORMAT or facts.get("made_by") != _made_by(engine):
        raise InputError(
            "the snapshot was taken with another model or other methods",
            given=str(facts.get("made_by"))[:200],
            do="serve the same",
        )
    session = engine.open(trace=trace)
    for part, holder in _holders(session).items():
        prefix = f"{part}/"
        held = {name.removeprefix(prefix): t for name, t in snapshot.tensors.items() if name.startswith(prefix)}
        holder.load(held, facts["parts"][part])
    session.time_s, session.frames = facts["time_s"], facts["frames"]
    session.totals = SessionStats(**facts["totals"])
    return session


def save(folder: Path, owner: Caller, snapshot: Snapshot) -> tuple[str, int]:
    """Write a snapshot; its name, and its bytes. A failure leaves nothing behind.

    Raises `Refusal` (507) when it cannot be written.
    """
    name = secrets.token_hex(12)
    tensors, facts = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(snapshot.tensors, tensors)
        # The facts come last: a snapshot without them was not finished, and does not count.
        facts.write_text(json.dumps(snapshot.facts | {"owner": owner.name}), encoding="utf-8")
        return name, tensors.stat().st_size + facts.stat().st_size
    except (OSError, SafetensorError) as error:
        for path in (tensors, facts):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise Refusal(507, "snapshot_failed", f"the snapshot cannot be written: {_reason(error)}") from error


def read(folder: Path, owner: Caller, name: str) -> Snapshot:
    """Read a snapshot of this owner. Raises `Refusal`: 404 if there is none of theirs, 422 if it is damaged."""
    unknown = Refusal(404, "snapshot_not_found", f"there is no snapshot {name!r}", param="snapshot")
    try:
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if facts.pop("owner") != owner.name:
            raise unknown
        return Snapshot(load_file(folder / f"{name}.safetensors"), facts)
    except FileNotFoundError:
        raise unknown from None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise Refusal(422, "snapshot_damaged", f"snapshot {name!r} cannot be read", param="snapshot") from error


def _holders(session: Session) -> dict[str, Any]:
    parts = (session.store, session.encoder_state, session.compressor_state, session.memory_state)
    return dict(zip(_PARTS, parts, strict=True))


def _made_by(engine: Engine) -> dict[str, Any]:
    methods = [registry.describe(method) for method in engine.methods]
    return {"model": engine.model.spec.name, "dtype": str(engine.model.spec.dtype), "methods": methods}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)[:120]
