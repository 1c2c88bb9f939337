"""Sessions on disk: tensors as safetensors, everything else as JSON beside them, and nothing that could run code."""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import time
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
from onlooker.server.refusals import Refusal, overloaded
from onlooker.server.settings import Limits

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


def save(folder: Path, owner: Caller, snapshot: Snapshot, limits: Limits) -> tuple[str, int]:
    """Write a snapshot; its name, and its bytes. A failure leaves nothing behind.

    Raises `Refusal`: 429 when the owner keeps as many as may be, 507 when it cannot be written.
    """
    kept = listed(folder, owner)
    more = sum(tensor.nbytes for tensor in snapshot.tensors.values())
    if len(kept) >= limits.snapshots_per_key:
        raise overloaded("too_many_snapshots", f"your key keeps {len(kept)} snapshots; delete one", 60)
    if (held := sum(one["bytes"] for one in kept)) + more > limits.snapshot_bytes_per_key:
        most = f"snapshots of one key have at most {limits.snapshot_bytes_per_key} bytes"
        raise overloaded("snapshots_full", f"{most}: {held} are kept, this one has {more}; delete one", 60)
    name = secrets.token_hex(12)
    tensors, facts = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(snapshot.tensors, tensors)
        # The facts come last: a snapshot without them was not finished, and does not count.
        kept_facts = snapshot.facts | {"owner": owner.name, "saved": time.time(), "sha256": _digest(tensors)}
        facts.write_text(json.dumps(kept_facts), encoding="utf-8")
        return name, tensors.stat().st_size + facts.stat().st_size
    except (OSError, SafetensorError) as error:
        for path in (tensors, facts):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise Refusal(507, "snapshot_failed", f"the snapshot cannot be written: {_reason(error)}") from error


def listed(folder: Path, owner: Caller) -> list[dict[str, Any]]:
    """The snapshots of an owner, oldest first: name, bytes, when it was saved, stream time (seconds), frames."""
    found = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["owner"] != owner.name:
                continue
            size = path.stat().st_size + path.with_suffix(".safetensors").stat().st_size
            told_of = {"snapshot": path.stem, "bytes": size, "saved": facts.get("saved") or path.stat().st_mtime}
            found.append(told_of | {"time_s": facts.get("time_s"), "frames": facts.get("frames")})
    return sorted(found, key=lambda one: one["saved"])


def delete(folder: Path, owner: Caller, name: str) -> None:
    """Remove a snapshot of this owner. Raises `Refusal` (404) if there is none of theirs."""
    if name not in [one["snapshot"] for one in listed(folder, owner)]:
        raise _unknown(name)
    for kind in (".json", ".safetensors"):  # the facts first: without them it does not count
        (folder / f"{name}{kind}").unlink(missing_ok=True)


def read(folder: Path, owner: Caller, name: str) -> Snapshot:
    """Read a snapshot of this owner. Raises `Refusal`: 404 if there is none of theirs, 422 if it is damaged."""
    damaged = Refusal(422, "snapshot_damaged", f"snapshot {name!r} cannot be read", param="snapshot")
    try:
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if facts.pop("owner") != owner.name:
            raise _unknown(name)
        tensors = folder / f"{name}.safetensors"
        if facts.pop("sha256", None) not in (None, _digest(tensors)):
            raise damaged
        facts.pop("saved", None)
        return Snapshot(load_file(tensors), facts)
    except FileNotFoundError:
        raise _unknown(name) from None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise damaged from error


def _unknown(name: str) -> Refusal:
    return Refusal(404, "snapshot_not_found", f"there is no snapshot {name!r}", param="snapshot")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holders(session: Session) -> dict[str, Any]:
    parts = (session.store, session.encoder_state, session.compressor_state, session.memory_state)
    return dict(zip(_PARTS, parts, strict=True))


def _made_by(engine: Engine) -> dict[str, Any]:
    methods = [registry.describe(method) for method in engine.methods]
    return {"model": engine.model.spec.name, "dtype": str(engine.model.spec.dtype), "methods": methods}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)[:120]
