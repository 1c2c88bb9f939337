"""What a gate makes of a frame, before anything else is done with it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from onlooker.core.contracts import PICTURE_SIZES, ClipModel, Gate, MemoryView, VideoModel
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState

if TYPE_CHECKING:
    from onlooker.engine.session import Session

Fate = Literal["whole", "shrunk", "replaced", "skipped"]


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """A frame that has met the gate."""

    frame: Frame | None
    """What is encoded; None: nothing, it is skipped."""
    fate: Fate
    state: StreamState
    """What the gate remembers once the frame is taken."""


def gated(gate: Gate, model: VideoModel | ClipModel, session: "Session", frame: Frame) -> Gated:
    """Show a frame to the gate. Raises what the gate raises, and `InputError` for a verdict that is none."""
    state = session.states["gate"].fork()
    hint = session.memory.hint(session.states["memory"])
    verdict = gate.look(frame, MemoryView(session.store.spans, session.seen_s, hint), state)
    if session.seen_s != session.time_s and frame.codec is not None:
        # The record leads to a frame that was skipped: behind the gate it would be taken for the way to the last seen.
        frame = replace(frame, codec=None)
    if isinstance(verdict, np.ndarray):
        return Gated(replace(frame, image=verdict), "replaced", state)
    if not isinstance(verdict, int | float) or not 0 <= verdict <= 1:
        raise InputError(
            f"{type(gate).__name__} gave a verdict that is none",
            given=str(verdict)[:80],
            do="correct the gate: 0 to skip, 1 for the whole frame, a share between, or a picture",
        )
    if verdict == 0:
        if session.seen_s is None:
            raise InputError(
                f"{type(gate).__name__} skipped the first frame of a stream",
                given=f"the frame at {frame.time_s:.3f} s",
                do="correct the gate: there is nothing to look at before it",
            )
        return Gated(None, "skipped", state)
    if verdict == 1:
        return Gated(frame, "whole", state)
    if isinstance(model, ClipModel) or PICTURE_SIZES not in model.offers:
        raise InputError(
            f"{type(gate).__name__} shrinks frames, and this model takes all pictures at one size",
            given=f"share {verdict:g}",
            do="choose a gate that only skips; one that shrinks needs picture_sizes",
        )
    return Gated(replace(frame, share=float(verdict)), "shrunk", state)
