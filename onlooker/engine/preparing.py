"""An engine as a server runs it: its steps of fixed shape are made before the first stream comes."""

import contextlib
import gc
import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from onlooker.core.contracts import VideoModel
from onlooker.core.errors import CapacityError, ModelError
from onlooker.core.frame import Frame
from onlooker.engine.engine import Engine
from onlooker.engine.request import InFlight
from onlooker.engine.sampling import Decoding
from onlooker.engine.session import Session
from onlooker.engine.slo import SLO

LOG = logging.getLogger("onlooker.engine")
QUESTION_TOKENS = 128
"""Tokens of a pass beside those of its frames: prompts, and words of answers."""
SIZES = ((384, 384), (360, 640))
"""Rows and columns of pictures that a model of one size makes the same of."""
MOST_WATCHED, MOST_WATCHED_S = 400, 10.0
"""Frames, and seconds, in which a rehearsal waits for a memory to be full."""
QUESTION = "What is happening now?"


def ready(make: Callable[[], Engine], slo: SLO) -> Engine:
    """An engine with steps for as many frames as a scheduler takes at once, where its model makes one size of every
    picture; another as it is. One whose methods have no such steps is made anew, and runs as it is: the log tells."""
    engine = make()
    if engine.serves is not VideoModel or len({engine.resize(_blank(size)).shape for size in SIZES}) > 1:
        return engine
    began = time.perf_counter()
    try:
        prepare(engine, slo.most_frames, _blank(SIZES[0]))
    except ModelError as error:
        LOG.warning("steps are not prepared: %s", error)
        return make()
    LOG.info("steps of up to %d frames are ready after %.1f s", slo.most_frames, time.perf_counter() - began)
    return engine


def prepare(
    engine: Engine, most_frames: int, picture: np.ndarray, on_step: Callable[[str], None] = lambda name: None
) -> None:
    """Make steps for so many frames like this picture (uint8 `[rows, cols, 3]`), and passes for what is kept of them
    beside questions. Raises `ModelError` where the model or a method has none."""
    with engine.open() as probe:
        kept = max(1, probe.push(Frame(picture, 0.0)).tokens_kept) + 16
    rows, cols = picture.shape[:2]
    most = most_frames * kept + QUESTION_TOKENS
    engine.prepare(most_frames=most_frames, most_tokens=most, picture=(rows, cols), on_step=on_step)
    if engine.device.type == "cuda":
        rehearse(engine, most_frames, picture.shape, on_step)
        gc.collect()
        torch.cuda.empty_cache()


def rehearse(
    engine: Engine, most_frames: int, picture: tuple[int, ...], on_step: Callable[[str], None] = lambda name: None
) -> None:
    """Do once what a step does beside its prepared parts: with every number of frames and of questions, and in a memory
    that is full. Libraries load a kernel, and ours are compiled, when a shape first wants it, and all streams wait.
    Leaves no mark; ends early where there is no room for so many streams."""
    noise = np.random.default_rng(0)

    def frame(time_s: int) -> Frame:
        return Frame(noise.integers(0, 256, picture, dtype=np.uint8), float(time_s))

    with contextlib.ExitStack() as closing, contextlib.suppress(CapacityError, torch.OutOfMemoryError):
        sessions = [closing.enter_context(engine.open()) for _ in range(most_frames)]
        _watch_until_full(engine, sessions[0], frame)
        on_step("watch until a memory is full")
        time_s, decoding = MOST_WATCHED, Decoding(most_frames + 1, temperature=0.0)
        engine.advance([(session, frame(time_s)) for session in sessions], [])
        asked = [session.submit(QUESTION, decoding=decoding) for session in sessions]
        for request in asked:  # one that is left in flight holds what it sees until garbage is looked for
            closing.callback(request.cancel)
        for count in range(most_frames, 0, -1):
            time_s += 1
            requests: list[InFlight] = [request for request in asked[:count] if not request.done]
            engine.advance([(session, frame(time_s)) for session in sessions[:count]], requests)
        on_step(f"steps of 1 to {most_frames} frames")


def _watch_until_full(engine: Engine, session: Session, frame: Callable[[int], Frame]) -> None:
    began = time.perf_counter()
    for number in range(MOST_WATCHED):
        session.push(frame(number))
        full = session.totals.blocks_forgotten or session.totals.blocks_parked
        if full or time.perf_counter() - began > MOST_WATCHED_S:
            break
    session.ask(QUESTION, max_new_tokens=2)
    engine.wait()


def _blank(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((*size, 3), dtype=np.uint8)
