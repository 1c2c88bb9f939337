"""Sessions on disk: tensors as safetensors, everything else as JSON beside them, and nothing that could run code."""

import contextlib
import json
import secrets
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onlooker.engine import Saved
from onlooker.server.keys import Caller
from onlooker.server.refusals import Refusal, overloaded
from onlooker.server.settings import Limits


def save(folder: Path, owner: Caller, snapshot: Saved, limits: Limits) -> tuple[str, int]:
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
        kept_facts = {
            "owner": owner.name,
            "saved": time.time(),
            "facts": snapshot.sealed().facts,
        }
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
            found.append(told_of | {name: facts["facts"].get(name) for name in ("time_s", "frames")})
    return sorted(found, key=lambda one: one["saved"])


def delete(folder: Path, owner: Caller, name: str) -> None:
    """Remove a snapshot of this owner. Raises `Refusal` (404) if there is none of theirs."""
    if name not in [one["snapshot"] for one in listed(folder, owner)]:
        raise _unknown(name)
    for kind in (".json", ".safetensors"):  # the facts first: without them it does not count
        (folder / f"{name}{kind}").unlink(missing_ok=True)


def read(folder: Path, owner: Caller, name: str) -> Saved:
    """Read a snapshot of this owner. Raises `Refusal`: 404 if there is none of theirs, 422 if it is damaged."""
    damaged = Refusal(422, "snapshot_damaged", f"snapshot {name!r} cannot be read", param="snapshot")
    try:
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if facts["owner"] != owner.name:
            raise _unknown(name)
        return Saved(load_file(folder / f"{name}.safetensors"), facts["facts"]).verify()
    except FileNotFoundError:
        raise _unknown(name) from None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise damaged from error


def _unknown(name: str) -> Refusal:
    return Refusal(404, "snapshot_not_found", f"there is no snapshot {name!r}", param="snapshot")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)[:120]
