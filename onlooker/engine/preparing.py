"""An engine as a server runs it: its steps of fixed shape are made before the first stream comes."""

import logging
import time
from collections.abc import Callable

import numpy as np

from onlooker.core.contracts import VideoModel
from onlooker.core.errors import ModelError
from onlooker.core.frame import Frame
from onlooker.engine.engine import Engine
from onlooker.engine.slo import SLO

LOG = logging.getLogger("onlooker.engine")
QUESTION_TOKENS = 128
"""Tokens of a pass beside those of its frames: prompts, and words of answers."""
SIZES = ((384, 384), (360, 640))
"""Rows and columns of pictures that a model of one size makes the same of."""


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


def _blank(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((*size, 3), dtype=np.uint8)
