"""Streams that are drawn and encoded once, and watched under many memories from what was kept of them."""

import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.twins.no_sinks import WITHOUT_PROMPT, NoPrompt
from onlooker.core.contracts import Encoded, MemoryPolicy, VideoModel, VisionTower
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.engine import Engine, Session
from onlooker.engine.emission import Emission, Pending
from onlooker.engine.eye import Eye
from onlooker.engine.seeing import Patch, Seen

COLUMNS = ("features", "frame", "time_s", "row", "col", "weight")
ANYTHING = np.zeros((1, 1, 3), dtype=np.uint8)


@dataclass
class Newest(StreamState):
    """Tokens of the newest frame."""

    replaces: ClassVar[bool] = True

    tokens: VisualTokens | None = None


@dataclass(frozen=True)
class Showing(MemoryPolicy):
    """Holds the tokens of the newest frame for whoever wants them."""

    holds_tokens: ClassVar[bool] = True

    def new_state(self) -> Newest:
        """None yet."""
        return Newest()

    def absorb(self, new: Unread, state: StreamState) -> None:
        """Keep them until the next come."""
        assert isinstance(state, Newest) and isinstance(new.content, VisualTokens)
        state.tokens = new.content


@dataclass(frozen=True, eq=False)
class SeenStream:
    """What a compressor gave out of one stream, frame by frame."""

    tokens: VisualTokens
    """All of it, one frame behind the other."""
    counts: Tensor
    """Tokens of each frame, int64 `[frames]`."""
    times_s: Tensor
    """float64 `[frames]`."""
    seen: int
    """Tokens of a frame before compression."""

    @classmethod
    def of(cls, engine: Engine, frames: Iterator[Frame]) -> "SeenStream":
        """All frames of a stream through the encoder and the compressor of an engine whose memory is `Showing`."""
        times_s, parts, seen = [], [], 0
        with engine.open() as session:
            for frame in frames:
                seen = session.push(frame).tokens_seen
                state = session.states["memory"]
                assert isinstance(state, Newest) and state.tokens is not None
                times_s.append(frame.time_s)
                parts.append(state.tokens)
        joined: dict[str, Any] = {name: torch.cat([getattr(tokens, name) for tokens in parts]) for name in COLUMNS}
        extras = {name: torch.cat([tokens.extras[name] for tokens in parts]) for name in parts[0].extras}
        counts = torch.tensor([len(tokens) for tokens in parts])
        tokens = VisualTokens(**joined, grid=parts[0].grid, extras=extras)
        return cls(tokens, counts, torch.tensor(times_s, dtype=torch.float64), seen)

    def save(self, path: Path) -> None:
        """Into a file, which is there whole or not at all."""
        some: dict[str, Tensor] = {name: getattr(self.tokens, name) for name in COLUMNS}
        some |= {f"extra.{name}": value for name, value in self.tokens.extras.items()}
        sizes = torch.tensor([*self.tokens.grid, self.seen])
        some |= {"counts": self.counts, "times_s": self.times_s, "sizes": sizes}
        partial = path.with_suffix(f".{os.getpid()}")
        save_file({name: value.contiguous() for name, value in some.items()}, partial)
        partial.rename(path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "SeenStream":
        """What was saved."""
        some = load_file(path, device=str(device))
        rows, cols, seen = some["sizes"].tolist()
        extras = {name.removeprefix("extra."): value for name, value in some.items() if name.startswith("extra.")}
        columns: dict[str, Any] = {name: some[name] for name in COLUMNS}
        tokens = VisualTokens(**columns, grid=(rows, cols), extras=extras)
        return cls(tokens, some["counts"].cpu(), some["times_s"].cpu(), seen)

    def frames(self) -> Iterator[tuple[Frame, VisualTokens]]:
        """A frame of the right time, in which nothing is to be seen, and what was kept of the real one."""
        ends = self.counts.cumsum(0).tolist()
        for number, (time_s, end) in enumerate(zip(self.times_s.tolist(), ends, strict=True)):
            rows = slice(end - int(self.counts[number]), end)
            parts: dict[str, Any] = {name: getattr(self.tokens, name)[rows] for name in COLUMNS}
            extras = {name: value[rows] for name, value in self.tokens.extras.items()}
            yield Frame(ANYTHING, time_s), VisualTokens(**parts, grid=self.tokens.grid, extras=extras)


class Remembering(Eye):
    """Gives out what was kept of each frame instead of looking at it, as if encoder and compressor had run."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.model, engine.serving, frozenset(), engine.stages)
        self.next: weakref.WeakKeyDictionary[Session, tuple[VisualTokens, int]] = weakref.WeakKeyDictionary()
        """Of each session, what its next frame's tokens are, and how many they were before compression."""
        self._nothing = VisionTower((), 0, 0), Encoded(torch.zeros(0, 0, 0))

    def look(self, patches: Sequence[tuple[Session, Patch]], *, aside: bool = False, ends: bool = False) -> list[Seen]:
        """As `Eye.look`, of frames that are known."""
        found = []
        for session, patch in patches:
            tokens, seen = self.next[session]
            session.begin(seen)
            newest = Pending(session.next_number, patch.start_s, patch.end_s, len(patch.frames), seen)
            emission = Emission(((newest, tokens),), (newest,))
            found.append(Seen(patch, tokens.grid, emission, *self._nothing, 0))
        return found


def remembering(model: VideoModel, memory: str, kv: str, **eyes: Any) -> Engine:
    """An engine that watches streams which were seen before (`Remembering.next` says what comes next). Instead of a
    codec, `kv` may say that streams have no prompt."""
    kind, kv = (NoPrompt, "") if kv == WITHOUT_PROMPT else (Engine, kv)
    engine = kind(model, memory=memory, kv=kv, **eyes)
    engine.eye = Remembering(engine)
    return engine
