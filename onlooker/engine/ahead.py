"""The next step's frames go through the tower while the words of this one are looked at.

A step waits for the device where answers are: the next word of each has to be known. Without more the device then waits
for the host, which looks at words, chooses frames, makes pixels of them and plans. So the tower of the step to come is
asked for first, and words are looked at on a queue of their own, which waits for this step's scores and no longer.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from onlooker.core.contracts import VideoModel
from onlooker.core.frame import Frame
from onlooker.engine.computing import on_card
from onlooker.engine.request import release

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session
    from onlooker.engine.stream_queue import QueuedFrame, StreamQueue

LOG = logging.getLogger("onlooker.engine")


class Ahead:
    """The frames of a scheduler's next step, as far as they were chosen and seen ahead."""

    def __init__(self, engine: "Engine", wanted: bool | None) -> None:
        """`wanted`: None is where the device works beside the host."""
        beside = engine.device.type == "cuda" if wanted is None else wanted
        self.is_on = beside and can_see_ahead(engine)
        self._engine = engine
        self._chosen: list[tuple[StreamQueue, QueuedFrame]] = []
        self._queue = torch.cuda.Stream(engine.device) if self.is_on and engine.device.type == "cuda" else None
        self._done: Any = None

    def __len__(self) -> int:
        return len(self._chosen)

    def take(self) -> "list[tuple[StreamQueue, QueuedFrame]]":
        """What the step that begins has to take in, as far as that is known."""
        chosen, self._chosen = self._chosen, []
        return chosen

    def left(self, queue: "StreamQueue") -> "list[QueuedFrame]":
        """A stream has ended: its frames that were chosen and will not be taken."""
        gone = [queued for other, queued in self._chosen if other is queue]
        self._chosen = [(other, queued) for other, queued in self._chosen if other is not queue]
        return gone

    @contextmanager
    def looking(self, choose: "Callable[[], list[tuple[StreamQueue, QueuedFrame]]]") -> Iterator[None]:
        """Around looking at the words of a step, all of which was asked of the device: the frames that are chosen now
        are asked for before, and what is done within does not wait for them."""
        if self.is_on and self._queue is None:
            self._see(choose())
        if self._queue is None:
            yield
            return
        here = torch.cuda.current_stream(self._engine.device)
        asked = here.record_event()
        self._see(choose())
        self._queue.wait_event(asked)
        try:
            with torch.cuda.stream(self._queue):
                yield
        finally:
            # What was made there is read by the next pass, and what it was made of is written to.
            done = self._queue.record_event()
            here.wait_event(done)
            self._done = done

    def wait(self) -> None:
        """Until the device has done this step, and not what was asked ahead."""
        done, self._done = self._done, None
        if done is None:
            self._engine.wait()
        else:
            done.synchronize()

    def _see(self, chosen: "list[tuple[StreamQueue, QueuedFrame]]") -> None:
        self._chosen = chosen
        if not chosen:
            return
        try:
            with torch.no_grad(), on_card(self._engine.device):
                arrivals = arrivals_of(chosen)
                self._engine.check_arrivals(arrivals)
                self._engine.eye.see(arrivals)
        except Exception as error:  # their own step meets it again, and tells whose it is
            LOG.warning("%d frames could not be seen ahead: %s", len(chosen), error)
            release(error)


def can_see_ahead(engine: "Engine") -> bool:
    """Whether nothing looks at what methods remember of a stream, or writes it, between two steps. A thinker with a
    state does, and so does a question where frames wait for others."""
    if engine.serves is not VideoModel:  # a model that looks at the last frames at every question
        return False
    serving = engine.serving
    waits = engine.model.patch_frames > 1 or serving.compressor.lookahead > 0
    return not waits and not dataclasses.fields(serving.thinker.new_state())


def arrivals_of(chosen: "Sequence[tuple[StreamQueue, QueuedFrame]]") -> "list[tuple[Session, Frame]]":
    """Frames that were chosen, as an engine takes them."""
    return [(queue.session, queued.picture or queued.frame) for queue, queued in chosen]
