"""What occupies memory, and the plans a memory policy returns for it."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

SpanKind = Literal["prefix", "vision", "text", "speech", "caption", "thought"]
"""What a block is: the prompt before the stream, a patch of frames, or a note of some kind (`NOTES`)."""
NOTES: tuple[SpanKind, ...] = ("text", "speech", "caption", "thought")
"""Kinds of blocks that were written into the memory as text."""
Layout = Literal["keep", "pack"]
"""How positions are given out. `keep`: every slot of the full grid takes a position, pruned or not; `pack`: only the
tokens that were kept do."""

SaidPlace = Literal["behind", "own", "gap", "overlap"]
"""Where what is said counts its positions. `behind`: behind the question, like everything else; `own`: from zero, by a
counter of its own (GPE, Think-While-Watching); `gap`: from `SAID_GAP` behind the question; `overlap`: from where the
input stands, which the question's words count from, too (both Speak-While-Watching). Only the first is what a model
expects that was not trained for another."""
SAID_GAP = 10_000

Hint = Literal["clear", "fuzzy", "dropped"]
"""What a memory made of the newest frame that it took in, as it tells gates: kept whole, kept small, or not kept."""

Scoring = Literal["mean", "cosine", "shares", "heads", "queries"]
"""How the store scores blocks against a question. `mean`: the mean query of the bare question against every block's
mean key, all heads together; `cosine`: the same, however long the keys are; `shares`: every token of the whole prompt
shares its attention among the mean keys, head by head; a block gets the largest share of any token, added over heads.
`heads`: how each query head of the whole prompt's last token, from where the answer begins, shares its attention among
the mean keys, `[query_heads, spans]` (`MemoryPolicy.recall_found`). `queries`: not at all; the policy is given the
queries of the whole prompt themselves and chooses single rows (`MemoryPolicy.recall_rows`)."""


class Tier(Enum):
    """Where a block's keys and values lie."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Span:
    """One immutable block of the store as a policy sees it: no tensor, only what it is and where."""

    id: int
    """Number of the block in its store, ascending in stream order."""
    kind: SpanKind
    num_tokens: int
    start_s: float
    """Stream time of its first token, seconds (0.0 for the prefix)."""
    end_s: float
    """Stream time of its last token, seconds."""
    tier: Tier = Tier.DEVICE


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with blocks after a chunk was stored. Block ids; an id may appear once only."""

    park: tuple[int, ...] = ()
    """Move to the host tier: not seen while watching, still there to be recalled."""
    forget: tuple[int, ...] = ()
    """Drop for good."""
    melt: tuple[int, ...] = ()
    """Neighbours on the device of which only the rows stay that `MemoryPolicy.pick` picks. A plan that melts does
    nothing else."""
    packs: bool = False
    """Whether what melts is moved together: places that are lost are closed, layer by layer and head by head, so that
    positions in the window do not grow with the stream. Costs the keys of what is left once more, as they were written.
    What was melted once without it stays so."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What a question may see in one layer: block ids, ascending. Positions are packed in that order."""

    blocks: tuple[int, ...]
    rows: "Tensor | None" = None
    """Which of the blocks' tokens are seen, bool `[kv_heads, tokens]`, or `[1, tokens]` for all heads alike; None: all.
    Those that are seen keep their places."""
