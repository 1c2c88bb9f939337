"""Timed text beside frames: found by the question, none later than it, read in the order of the stream."""

import pytest
import torch
from stock_models import FAMILIES
from test_pairs import clip
from tiny import make_family_folder

from onlooker.core.errors import InputError
from onlooker.core.spans import Span
from onlooker.engine import Decoding, Engine
from onlooker.memory.video_rag import VideoRAG
from onlooker.models import load

QUESTION = "which shape left first ?"


@pytest.fixture(scope="module", params=FAMILIES)
def session(request, tmp_path_factory):
    """A frame and a text a second."""
    model = load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")
    memory = "video_rag:frames=4,notes=3,recent_notes=1,max_notes=9"
    engine = Engine(model, encoder="full", compressor="identity", memory=memory)
    session = engine.open()
    for frame in clip(16):
        session.push(frame)
        session.note("a red square , a blue circle .", kind="speech")
    return session


def seen(session, **when):
    """What each layer saw, by block."""
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=1), **when)
    while not request.done:
        session._engine.step([], [request])
        if request._view._contexts:
            layers = [[request._view.find(block) for block in one.blocks] for one in request._view._contexts]
    return layers


def test_frames_go_and_texts_are_found_again(session):
    frames = [span for span in session.store.spans if span.kind == "vision"]
    texts = [span for span in session.store.spans if span.kind == "speech"]
    assert len(frames) == 4 and len(texts) == 9
    assert all(span.tier.value == "host" for span in texts), "frames are read without them"
    for layer in seen(session):
        assert sum(span.kind == "vision" for span in layer) == 4
        assert sum(span.kind == "speech" for span in layer) == 4 and texts[-1] in layer


@pytest.mark.proves("video_rag", 2)
@pytest.mark.proves("livibench", 2)
@pytest.mark.parametrize("at", [13.0, 14.2, 15.0])
def test_no_text_is_later_than_the_question_and_all_are_in_order(session, at):
    for layer in seen(session, at=at):
        assert any(span.kind == "speech" for span in layer)
        assert all(span.end_s <= at for span in layer)
        assert [span.id for span in layer] == sorted(span.id for span in layer)
        times = [span.start_s for span in layer]
        assert times == sorted(times)


def test_the_best_texts_are_those_of_highest_score():
    policy, spans = VideoRAG(frames=4, notes=2, recent_notes=1), [Span(0, "prefix", 3, 0.0, 0.0)]
    spans += [Span(n, "text" if n % 2 else "vision", 4, float(n), float(n)) for n in range(1, 12)]
    scores = torch.arange(12.0).flip(0)
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 2, 3, 4, 6, 8, 10, 11)
    scores[7] = 99.0
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 2, 4, 6, 7, 8, 10, 11)
    with pytest.raises(InputError, match="max_notes"):
        VideoRAG(max_notes=0)
