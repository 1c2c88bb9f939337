"""Memories that recall, melt and carry, in an engine: together as apart, forked, saved, asked without a mark."""

import pytest
from test_pairs import clip, close, scores_after, watch

from onlooker.core.frame import Frame
from onlooker.engine import Engine

QUESTION = "which shape left first ?"
SMALL = (
    "streamingtom:recall_tokens=12,recent=1,window_tokens=8",
    "video_streaming:clip=3,summary=1,topk=1",
    "carriers:bank=3,recent=2",
    "livevlm:keep_tokens=9,recent=2,chunk=1,num_queries=3,ratio=0.5",
    "participative:sink_frames=1,recent=2,top_tokens=6,num_queries=3",
)


def engine_of(model, memory, **more):
    return Engine(model, encoder="full", compressor="stc_pruner:keep=4", memory=memory, **more)


@pytest.mark.parametrize("memory", SMALL)
def test_passes_streams_and_questions_do_not_matter(tiny_model, memory):
    plain, packed = engine_of(tiny_model, memory, passes="plain"), engine_of(tiny_model, memory, passes="packed")
    clips = [clip(14, seed=1), clip(14, seed=2)]
    together = [packed.open(), packed.open()]
    for pair in zip(*clips, strict=True):
        packed.step(list(zip(together, pair, strict=True)))
    for session, frames in zip(together, clips, strict=True):
        alone = watch(plain, frames)
        assert [span.num_tokens for span in session.store.spans] == [span.num_tokens for span in alone.store.spans]
        close(scores_after(session, engine=packed), scores_after(alone))
        assert session.store.num_bytes()["device_rows"] == alone.store.num_bytes()["device_rows"]
        first, again = (session.ask(QUESTION, max_new_tokens=4) for _ in range(2))
        assert (first.text, first.usage, first.citations) == (again.text, again.usage, again.citations)
        assert session.ask_many([QUESTION, "what ?"], max_new_tokens=4)[0].text == first.text


@pytest.mark.parametrize("memory", SMALL)
def test_forked_saved_and_loaded_it_goes_on(tiny_model, memory):
    engine = engine_of(tiny_model, memory)
    session = watch(engine, clip(9))
    twins = [session.fork(), engine.load(session.export())]
    for number, frame in enumerate(clip(7, seed=5)):
        for one in (session, *twins):
            one.push(Frame(frame.image, 100.0 + number))
    wanted = scores_after(session)
    for twin in twins:
        assert [span.id for span in twin.store.spans] == [span.id for span in session.store.spans]
        close(scores_after(twin), wanted)


@pytest.mark.parametrize(
    "memory",
    [
        "streamingtom:recall_tokens=9999,window_tokens=9999",
        "livevlm:ratio=1.0",
        "participative:top_tokens=9999",
        "carriers:bank=99,tokens=99",
    ],
)
def test_with_room_for_everything_it_is_full(tiny_model, memory):
    """Rounding apart: what is recalled is turned once more."""
    close(
        scores_after(watch(engine_of(tiny_model, memory), clip(9))),
        scores_after(watch(engine_of(tiny_model, "full"), clip(9))),
    )
