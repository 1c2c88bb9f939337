"""Compressors that give out late, or nothing, and leave every token as it is: what they do to a stream can be told."""

from dataclasses import dataclass, field

import torch

from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join


@dataclass
class Held(StreamState):
    tokens: list[VisualTokens] = field(default_factory=list)
    count: int = 0


@dataclass(frozen=True)
class KeepsSome(Compressor):
    """All of every third frame (a pair where there are pairs), nothing of the others."""

    every: int = 3
    """Frames from one that is kept to the next; 0: none is."""

    def new_state(self):
        return Held()

    def compress(self, tokens, state):
        state.count += 1
        return tokens if self.every and state.count % self.every == 1 else tokens.select(torch.arange(0))


@dataclass(frozen=True)
class HoldsSome(Compressor):
    """Everything, so many frames together."""

    frames: int = 3
    """Frames that are given out together."""

    @property
    def lookahead(self):
        return self.frames - 1

    def num_held(self, state):
        return len(state.tokens)

    def new_state(self):
        return Held()

    def compress(self, tokens, state):
        out = None
        if state.tokens and state.tokens[0].grid != tokens.grid:
            out = self.flush(state)
        state.tokens = [*state.tokens, tokens.select(torch.arange(len(tokens)))]
        if len(state.tokens) == self.frames:
            out = self.flush(state)
        return tokens.select(torch.arange(0)) if out is None else out

    def flush(self, state):
        held, state.tokens = state.tokens, []
        return join(held) if held else None


@dataclass(frozen=True)
class OneLate(HoldsSome):
    """Everything, each frame when the next one comes."""

    frames: int = 2
    """The frame and the next."""

    def compress(self, tokens, state):
        out, state.tokens = self.flush(state), [tokens.select(torch.arange(len(tokens)))]
        return tokens.select(torch.arange(0)) if out is None else out
