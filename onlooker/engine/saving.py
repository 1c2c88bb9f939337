"""A session as plain tensors and JSON-able facts, and back: it goes on as if it had never stopped."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onlooker.core import registry
from onlooker.core.checks import number, whole
from onlooker.core.errors import InputError, OnlookerError
from onlooker.core.events import SessionStats
from onlooker.core.frame import Frame
from onlooker.core.kinds import telling
from onlooker.engine.emission import Pending

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

FORMAT = 4
_FACTS = (
    "format",
    "made_by",
    "time_s",
    "frames",
    "seen_s",
    "noted_s",
    "waiting",
    "pending",
    "totals",
    "parts",
    "on_host",
    "sha256",
)


@dataclass(frozen=True, eq=False)
class Saved:
    """What a session remembers: tensors by name, on the CPU, and facts that JSON can hold."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    verified: bool = False
    """Whether its checksum was found right since it came from outside."""

    def sealed(self) -> "Saved":
        """With the checksum of what it holds now. Reads every byte: not on the thread that serves streams."""
        return Saved(self.tensors, self.facts | {"sha256": checksum(self.tensors, self.facts)}, verified=True)

    def verify(self) -> "Saved":
        """The same, known to be whole. Raises `InputError` when it is not as it was sealed."""
        if not self.verified and self.facts.get("sha256") != checksum(self.tensors, self.facts):
            raise InputError("the snapshot is damaged", given="its checksum is another", do="take a new one")
        return Saved(self.tensors, self.facts, verified=True)


def save(session: "Session", engine: "Engine") -> Saved:
    """See `Session.export`."""
    tensors: dict[str, Tensor] = {}
    parts: dict[str, Any] = {}
    on_host = []
    for part, holder in session.holders().items():
        held, parts[part] = holder.export()
        for name, tensor in held.items():
            if part != "store" and tensor.device.type == "cpu":
                on_host.append(f"{part}/{name}")
            # A copy each: files refuse tensors that share memory, and the stream goes on.
            tensors[f"{part}/{name}"] = tensor.to("cpu", copy=True).contiguous()
    for n, frame in enumerate(session.waiting):
        tensors[f"waiting/{n}"] = torch.from_numpy(frame.image.copy())
    facts = {
        "format": FORMAT,
        "made_by": made_by(engine),
        "time_s": session.time_s,
        "frames": session.frames,
        "seen_s": session.seen_s,
        "noted_s": session.noted_s,
        "waiting": [
            {"time_s": frame.time_s, "wall_time_s": frame.wall_time_s, "share": frame.share}
            for frame in session.waiting
        ],
        "pending": [dataclasses.asdict(patch) for patch in session.pending],
        "totals": dataclasses.asdict(session.totals),
        "parts": parts,
        "on_host": on_host,
    }
    return Saved(tensors, json.loads(json.dumps(facts)))  # facts as they will be read: the checksum is of just that


def load(engine: "Engine", saved: Saved, *, trace: bool = False) -> "Session":
    """See `Engine.load`."""
    facts, tensors = saved.facts, saved.tensors
    _check(engine, saved)
    session = engine.open(trace=trace)
    try:
        if set(facts["parts"]) != set(session.holders()):
            raise InputError("the snapshot is damaged", given=f"parts {', '.join(facts['parts'])}"[:200])
        for part, holder in session.holders().items():
            held = {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}
            if part != "store":  # the store knows itself where its tensors belong
                held = {n: t if f"{part}/{n}" in facts["on_host"] else t.to(engine.device) for n, t in held.items()}
            holder.load(held, facts["parts"][part])
        session.time_s, session.frames = facts["time_s"], facts["frames"]
        session.seen_s = facts["seen_s"] and number("seen_s of a snapshot", facts["seen_s"], least=0.0)
        session.noted_s = number("noted_s of a snapshot", facts["noted_s"], least=0.0)
        session.waiting = tuple(
            Frame(tensors[f"waiting/{n}"].numpy().copy(), **times) for n, times in enumerate(facts["waiting"])
        )
        session.pending = tuple(_pending(patch) for patch in facts["pending"])
        if engine.serving.compressor.num_held(session.states["compressor"]) != len(session.pending):
            raise InputError("the snapshot is damaged", given="patches that the compressor does not hold")
        session.totals = SessionStats(**facts["totals"])
    except OnlookerError:
        session.close()
        raise
    except Exception as error:
        session.close()
        raise InputError("the snapshot is damaged", given=f"{type(error).__name__}: {str(error)[:200]}") from error
    return session


def _pending(patch: Any) -> Pending:
    """A patch that is held, of a snapshot. Raises `InputError` when it is none."""
    fields = {field.name: field.type for field in dataclasses.fields(Pending)}
    if not isinstance(patch, Mapping) or set(patch) != set(fields):
        raise InputError("the snapshot is damaged", given=f"a patch that is held: {str(patch)[:80]}")
    for name, value in patch.items():
        (number if name.endswith("_s") else whole)(f"{name} of a snapshot", value, least=0)
    return Pending(**patch)


def made_by(engine: "Engine") -> dict[str, Any]:
    """The model and the methods as they were configured, whatever is in their place under load."""
    methods = telling({kind: registry.describe(method) for kind, method in engine.methods.items()})
    return {**engine.about_model(), "methods": methods}


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 of all facts (but an older checksum) and all bytes."""
    told = {name: fact for name, fact in facts.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check(engine: "Engine", saved: Saved) -> None:
    """Raise `InputError` unless a session can be made of these facts; the parts check what is theirs."""
    facts: Any = saved.facts
    if not isinstance(facts, Mapping) or set(facts) != set(_FACTS):
        given = ", ".join(sorted(map(str, facts))) if isinstance(facts, Mapping) else type(facts).__name__
        raise InputError("this is no snapshot of this version", given=given[:200], do=f"facts are {', '.join(_FACTS)}")
    if facts["format"] != FORMAT:
        raise InputError("the snapshot is of another version", given=str(facts["format"])[:80], do="take a new one")
    if facts["made_by"] != made_by(engine):
        raise InputError(
            "the snapshot was taken with another model or other methods",
            given=str(facts["made_by"])[:300],
            do=f"use {made_by(engine)}",
        )
    saved.verify()
    whole("frames of a snapshot", facts["frames"], least=0)
    if facts["time_s"] is None:
        whole("frames of a snapshot without a time", facts["frames"], most=0)
    else:
        number("time_s of a snapshot", facts["time_s"], least=0.0)
    if not isinstance(facts["waiting"], list) or len(facts["waiting"]) >= engine.model.patch_frames:
        raise InputError("the snapshot is damaged", given="frames that wait", do="take a new one")
    if not isinstance(facts["pending"], list) or len(facts["pending"]) > engine.serving.compressor.lookahead:
        raise InputError("the snapshot is damaged", given="patches that are held", do="take a new one")
    if not isinstance(facts["on_host"], list) or not isinstance(facts["parts"], Mapping):
        raise InputError("the snapshot is damaged", given="on_host or parts", do="take a new one")
    _check_totals(facts["totals"])


def _check_totals(totals: Any) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(SessionStats)}
    if not isinstance(totals, Mapping) or set(totals) != set(fields):
        raise InputError("the snapshot's totals are damaged", given=str(totals)[:200], do="take a new one")
    for name, total in totals.items():
        if isinstance(fields[name], int):
            whole(f"total {name} of a snapshot", total, least=0)
            continue
        if isinstance(fields[name], float):
            number(f"total {name} of a snapshot", total, least=0.0)
            continue
        if not isinstance(total, Mapping):
            raise InputError("the snapshot's totals are damaged", given=f"{name}={total!r}"[:200], do="take a new one")
        for each in total.values():
            number(f"total {name} of a snapshot", each, least=0.0)
