"""What a session remembers as one file: tensors as safetensors, its facts as JSON in the head, no code."""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from onlooker.core.errors import InputError, OnlookerError
from onlooker.engine.saving import Saved

NAME = "session.safetensors"
"""The file in the folder of a saved session."""


def write(saved: Saved, folder: str | Path) -> Path:
    """Put a session's memory into a folder; the file's path.

    The file takes the place of an older one as a whole or not at all: whenever the process ends, one of the two is
    there and complete. Raises `InputError` when it cannot be written; the older one is there then.
    """
    sealed, place = saved.sealed(), Path(folder).expanduser()
    # In a folder of its own: safetensors writes into a file of another name first, which a killed process leaves there.
    apart = place / f".{NAME}.{secrets.token_hex(4)}"
    fresh = apart / NAME
    try:
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(f".{NAME}.*"):  # of processes that ended while they wrote
            shutil.rmtree(left, ignore_errors=True)
        apart.mkdir()
        save_file(sealed.tensors, fresh, metadata={"facts": json.dumps(sealed.facts)})
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(place / NAME)
        apart.rmdir()
        _sync(place)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(apart, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)[:120]
        raise InputError("a session cannot be saved there", given=f"{folder}: {reason}", do="another folder") from error
    return place / NAME


def read(folder: str | Path) -> Saved:
    """What `write` put into a folder, whole. Raises `InputError` when there is none, or when it is damaged."""
    path = Path(folder).expanduser() / NAME
    if not path.is_file():
        raise InputError("there is no saved session", given=str(path), do="save one with Session.save(folder)")
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Saved(tensors, facts).verify()
    except OnlookerError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        given = f"{path}: {type(error).__name__}"
        raise InputError("a saved session is damaged", given=given, do="begin a new one, or use a copy") from error


def _sync(folder: Path) -> None:
    """The new name on the disk, too, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
