"""Training states in pieces of at most 15.9 MiB, for machines that give back small files only."""

import io
from pathlib import Path
from typing import Any

import torch

PIECE_BYTES = int(15.9 * 2**20)


def pieces(path: Path) -> list[Path]:
    """The pieces of the newest state written to `path`, in order: `NAME.0-of-3` and so on."""
    found = sorted(path.parent.glob(f"{path.name}.*-of-*"))
    return [piece for piece in found if not piece.name.endswith(".part")]


def exists(path: Path) -> bool:
    """Whether a whole state lies there."""
    return bool(found := pieces(path)) and len(found) == _number(found[0])


def _number(piece: Path) -> int:
    return int(piece.name.rsplit("-", 1)[1])


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state; the old one stays until the new one is whole."""
    memory = io.BytesIO()
    torch.save(state, memory)
    data = memory.getbuffer()
    number = -(-len(data) // PIECE_BYTES)
    size = -(-len(data) // number)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for place in range(number):
        piece = path.with_name(f"{path.name}.{place}-of-{number}")
        part = piece.with_name(piece.name + ".part")
        part.write_bytes(data[place * size : (place + 1) * size])
        written.append((part, piece))
    for old in pieces(path):
        if _number(old) != number:
            old.unlink()
    for part, piece in written:
        part.replace(piece)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state at `path`. Raises `FileNotFoundError` when a piece is missing."""
    if not exists(path):
        raise FileNotFoundError(f"no whole training state at {path}: found {[piece.name for piece in pieces(path)]}")
    memory = io.BytesIO(b"".join(piece.read_bytes() for piece in pieces(path)))
    return torch.load(memory, map_location=device, weights_only=False)
