"""Frames and engines for the engine's tests."""

import pytest
from moving_pictures import make_frames

from onlooker.core.frame import Frame
from onlooker.engine import Engine


@pytest.fixture
def frames() -> list[Frame]:
    return make_frames(12)


@pytest.fixture
def plain(tiny_model) -> Engine:
    """No saving anywhere: dense encoder, all tokens, full memory."""
    return Engine(tiny_model, encoder="full", compressor="identity", memory="full")


@pytest.fixture
def saving(tiny_model) -> Engine:
    """STC on both sides and a retrieval memory."""
    return Engine(
        tiny_model,
        encoder="stc_published:interval=3,recompute_ratio=0.25",
        compressor="stc_pruner:keep=2",
        memory="rekv:topk=3,recent=2,window_tokens=40",
    )
