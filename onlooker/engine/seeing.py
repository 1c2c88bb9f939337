"""What goes through the tower together, and what came of it: frames wait here until their patch is complete."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from onlooker.core.contracts import Encoded, Gate, VideoModel, VisionTower
from onlooker.core.frame import Frame
from onlooker.engine.emission import Emission
from onlooker.engine.gating import Gated, gated
from onlooker.engine.request import release
from onlooker.engine.session import Session
from onlooker.engine.trace import Trace, as_trace


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Frames of one size that are one patch in time; where there are too few, the last one stands for the others."""

    frames: tuple[Frame, ...]

    @property
    def start_s(self) -> float:
        """Stream time of the first frame."""
        return self.frames[0].time_s

    @property
    def end_s(self) -> float:
        """Stream time of the last frame."""
        return self.frames[-1].time_s

    def pictures(self, count: int) -> list[Frame]:
        """So many frames, the last one repeated."""
        return [*self.frames, *[self.frames[-1]] * (count - len(self.frames))]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A patch between the eye and the memory."""

    patch: Patch
    grid: tuple[int, int]
    """Rows and columns of the picture's tokens; those of a further tower lie under it."""
    emission: Emission
    """What the compressor gave out when it came: its tokens, or also those of others, or none yet."""
    tower: VisionTower
    encoded: Encoded
    row: int
    """Of the batch in `encoded`."""

    @property
    def refreshed(self) -> bool:
        """Whether it was computed densely."""
        return self.encoded.refreshed[self.row] if self.encoded.refreshed else True

    def trace(self) -> tuple[Trace, float]:
        """For drawing it, and the share of the tower's work that was done anew. Waits for the device."""
        tower, rows_cols = self.tower, self.grid
        if self.encoded.recomputed is None:
            share = torch.ones(tower.num_tokens)
        else:
            share = self.encoded.recomputed[self.row].float().cpu()
        patches = share[tower.pinned :]
        if tower.raster is not None:
            patches = torch.zeros_like(patches).scatter(0, tower.raster.cpu(), patches)
        kept = torch.zeros(rows_cols[0] * rows_cols[1], dtype=torch.bool)
        mine = None
        for patch, tokens in self.emission.parts:
            if patch.end_s == self.patch.end_s:
                slots = tokens.slot.cpu()
                kept[slots[slots < len(kept)]] = True
                mine = tokens
        trace = as_trace(self.patch.end_s, patches.view(tower.grid), kept.view(rows_cols), self.refreshed, mine)
        return trace, float(share.mean())


@dataclass(slots=True, eq=False)
class Arrival:
    """A frame on its way into one stream: what it completes, what waits after it, and what was seen of it."""

    frame: Frame
    """As it was pushed."""
    patch: Patch | None
    """What is complete now; None: the frame waits for others."""
    waiting: tuple[Frame, ...]
    """The newest frames of the stream that are no patch yet, once this one is taken."""
    gated: Gated | None = None
    """What the gate made of it; None: it failed."""
    error: Exception | None = None
    """What the gate failed of."""
    seen: Seen | None = None

    @property
    def is_skipped(self) -> bool:
        """Whether the gate did not have it encoded."""
        return self.gated is not None and self.gated.frame is None


def arrive(gate: Gate, model: VideoModel, session: Session, frame: Frame) -> Arrival:
    """Show a new frame to the gate, and what lets itself be seen then. What the gate fails of is the stream's own
    affair."""
    try:
        met = gated(gate, model, session, frame)
    except Exception as error:
        return Arrival(frame, None, session.waiting, error=release(error))
    if met.frame is not None:
        arrival = completed(model, session.waiting, met.frame)
    else:
        waiting = session.waiting
        is_late = bool(waiting) and frame.time_s - waiting[0].time_s > model.patch_s
        arrival = Arrival(frame, Patch(waiting), ()) if is_late else Arrival(frame, None, waiting)
    arrival.frame, arrival.gated = frame, met
    return arrival


def completed(model: VideoModel, waiting: Sequence[Frame], frame: Frame) -> Arrival:
    """What a new frame completes. Frames of different sizes, or too far apart, are no patch: those that have waited
    are one by themselves then, and the new one waits."""
    if model.patch_frames == 1:
        return Arrival(frame, Patch((frame,)), ())
    picture = model.resize(frame.image)
    # A copy: the caller may write the next frame into the same memory before the patch is complete.
    kept = replace(frame, image=picture.copy() if picture is frame.image else picture)
    first = waiting[0] if waiting else kept
    is_alike = (kept.image.shape, kept.share) == (first.image.shape, first.share)
    if waiting and (not is_alike or frame.time_s - first.time_s > model.patch_s):
        return Arrival(frame, Patch(tuple(waiting)), (kept,))
    together = (*waiting, kept)
    if len(together) < model.patch_frames:
        return Arrival(frame, None, together)
    return Arrival(frame, Patch(together), ())


def batches(
    groups: Mapping[tuple[tuple[int, ...], ...], list[int]], most: Mapping[tuple[tuple[int, ...], ...], int]
) -> Iterator[tuple[tuple[tuple[int, ...], ...], list[int]]]:
    """Members of groups by shapes, as many at once as the encoder was prepared for (`most`, by shapes)."""
    for shapes, members in groups.items():
        count = most.get(shapes, len(members))
        for first in range(0, len(members), count):
            yield shapes, members[first : first + count]
