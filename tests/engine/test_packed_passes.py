"""Packed passes, captured or not, equal the plain ones: frames, questions, retrieval, streams that come and go."""

import itertools
import random

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.errors import InputError, ModelError
from onlooker.core.frame import Frame
from onlooker.encode.stc_published import STCPublished
from onlooker.engine import Decoding, Engine
from onlooker.engine.packing import Work
from onlooker.engine.passes import PackedPasses, pass_sizes
from onlooker.models import load

QUESTIONS = ("which shape left first ?", "what is happening in the video ?")
MEMORIES = ("full", "sliding_window:window_tokens=30", "rekv:topk=3,recent=2,window_tokens=40")


@pytest.fixture(scope="module", params=FAMILIES)
def any_model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


def make_engine(model, memory, passes, **settings) -> Engine:
    saving = {"encoder": "stc_published:interval=3,recompute_ratio=0.25", "compressor": "stc_pruner:keep=2"}
    return Engine(model, memory=memory, passes=passes, **saving | settings)


def life(engine: Engine, num_steps: int, seed: int, most_streams: int = 4):
    """Streams join and leave at random, and are asked now and then: every answer, and all keys at the end."""
    chosen, answers, keys = random.Random(seed), [], []
    clips = [make_frames(num_steps, seed=number) for number in range(most_streams)]
    sessions, requests = {}, []

    def settle(done):
        answers.extend((request.question, round(request.time_s), request.answer().text) for request in done)

    for step in range(num_steps):
        stream = chosen.randrange(most_streams)
        if stream not in sessions:
            sessions[stream] = engine.open()
        elif chosen.random() < 0.1:
            for request in requests:
                request.cancel()
            requests.clear()
            keys.append(sessions.pop(stream).store.export()[0])
        arrivals = [
            (session, Frame(clips[number][step].image, float(step)))
            for number, session in sessions.items()
            if chosen.random() < 0.7
        ]
        engine.step(arrivals, requests)
        settle(request for request in requests if request.done)
        requests = [request for request in requests if not request.done]
        seen = [session for session in sessions.values() if session.time_s is not None]
        if seen and chosen.random() < 0.3:
            requests.append(chosen.choice(seen).submit(chosen.choice(QUESTIONS), decoding=Decoding(max_new_tokens=4)))
    while requests:
        engine.step([], requests)
        settle(request for request in requests if request.done)
        requests = [request for request in requests if not request.done]
    return answers, [*keys, *(session.store.export()[0] for session in sessions.values())]


def compare(wanted, got, tolerance, same_words=True):
    assert len(wanted[0]) == len(got[0]) > 2
    assert wanted[0] == got[0] or not same_words
    assert len(wanted[1]) == len(got[1])
    for one, other in zip(wanted[1], got[1], strict=True):
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", MEMORIES)
def test_packed_equals_plain_while_streams_come_and_go(any_model, memory):
    wanted = life(make_engine(any_model, memory, "plain"), 25, 5)
    engine = make_engine(any_model, memory, "packed")
    compare(wanted, life(engine, 25, 5), 1e-4)
    assert engine.passes.counts.tokens > 100 and engine.passes.counts.captured == 0
    assert bool(engine.passes.counts.plain) == memory.startswith("rekv")


def test_small_passes_cut_what_is_larger(tiny_model):
    wanted = life(make_engine(tiny_model, MEMORIES[0], "plain"), 20, 6)
    engine = make_engine(tiny_model, MEMORIES[0], "packed")
    ready = []
    engine.passes.prepare([16], ready.append)
    assert ready == ["read 16 tokens"]
    compare(wanted, life(engine, 20, 6), 1e-4)
    counts = engine.passes.counts
    assert counts.captured == counts.passes and counts.plain == 0
    assert counts.tokens + counts.padding == 16 * counts.passes, "prompts longer than a pass were cut, none grew"


def test_citations_are_the_same(tiny_model):
    cited = []
    for passes in ("plain", "packed"):
        session = make_engine(tiny_model, "full", passes).open()
        for frame in make_frames(12):
            session.push(frame)
        cited.append(session.ask(QUESTIONS[0], max_new_tokens=5).citations)
    assert cited[0]
    for one, other in zip(*cited, strict=True):
        assert (one.start_s, one.end_s) == (other.start_s, other.end_s)
        assert one.share == pytest.approx(other.share, abs=1e-4)


def test_answers_do_not_change_when_other_streams_come_and_go(tiny_model):
    """The same stream, alone and among others that watch, ask and leave."""
    clip, told = make_frames(12, seed=1), []
    for others in (0, 3):
        engine = make_engine(tiny_model, "sliding_window:window_tokens=30", "packed")
        session, company = engine.open(), [engine.open() for _ in range(others)]
        noise = [make_frames(12, seed=10 + number) for number in range(others)]
        for number, frame in enumerate(clip):
            if number == 8 and company:
                company.pop().close()
            engine.step([(session, frame), *((one, noise[n][number]) for n, one in enumerate(company))])
        requests = [one.submit(QUESTIONS[1]) for one in [session, *company]]
        while not requests[0].done:
            engine.step([], [request for request in requests if not request.done])
        told.append(requests[0].answer().text)
    assert told[0] == told[1]


def test_what_cannot_be_done_is_said(any_model):
    with pytest.raises(InputError, match="auto, plain or packed"):
        make_engine(any_model, "full", "fast")
    with pytest.raises(InputError, match="a pass has tokens"):
        pass_sizes(0)
    passes = PackedPasses(any_model, kernels=False)
    if not any_model.language_extras:
        with pytest.raises(InputError, match="captured by size"):
            passes.prepare([], print)
    if any_model.language_extras:
        with pytest.raises(ModelError, match="cannot be captured"):
            passes.prepare([64], print)


def test_sizes_waste_little():
    sizes = pass_sizes(2000)
    assert sizes[0] == 16 and sizes[-1] >= 2000 and all(size % 16 == 0 for size in sizes)
    assert all(after <= before * 2 for before, after in itertools.pairwise(sizes))
    assert all(after <= before * 1.5 for before, after in itertools.pairwise(sizes[2:]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 0.1)])
def test_graphs_equal_plain_passes_while_streams_come_and_go(memory, dtype, tolerance):
    model = load("pocket", device="cuda", dtype=dtype)
    is_long = dtype == "float32" and memory == MEMORIES[1]
    steps = 140 if is_long else 30  # the long one takes in more than 500 frames of eight streams
    engine = make_engine(model, memory, "packed")
    eager = life(engine, steps, 7, 8)
    engine.passes.prepare(pass_sizes(256), print)
    captured = life(engine, steps, 7, 8)
    compare(eager, captured, tolerance, same_words=dtype == "float32")
    assert engine.passes.counts.captured > steps // 2
    if dtype == "float32" and not is_long:
        compare(life(make_engine(model, memory, "plain"), steps, 7, 8), captured, tolerance)


def test_a_prepared_engine_equals_one_that_is_not(tiny_model):
    """Fixed shapes everywhere, and more streams than one encoder step was prepared for."""
    wanted = life(make_engine(tiny_model, MEMORIES[1], "packed"), 25, 5)
    engine, told = make_engine(tiny_model, MEMORIES[1], "packed"), []
    engine.prepare(most_frames=2, most_tokens=64, picture=(56, 56), on_step=told.append)
    assert "read 64 tokens" in told
    compare(wanted, life(engine, 25, 5), 2e-2)
    counts = engine.passes.counts
    assert counts.captured == counts.passes


@pytest.mark.parametrize("prepared", [False, True])
def test_lighter_settings_from_the_next_frame_on(tiny_model, prepared):
    engine = make_engine(tiny_model, MEMORIES[1], "packed")
    if prepared:
        engine.prepare(most_frames=2, most_tokens=64, picture=(56, 56))
    session = engine.open()
    flags = [session.push(frame).refreshed for frame in make_frames(6)]
    assert flags == [True, False, False] * 2
    engine.use(encoder=STCPublished(interval=6, recompute_ratio=0.25))
    clip = make_frames(16, seed=3)[7:]
    assert [session.push(frame).refreshed for frame in clip] == [False, False, False, True] + [False] * 5


def test_a_block_whose_tokens_all_see_each_other_is_never_cut(any_model):
    """It is packed where it fits into a pass, and else read in a plain one, which is counted."""
    model, keys = any_model, []
    for passes, sizes, plain in (("plain", None, 1), ("packed", None, 0), ("packed", (16,), 1), ("packed", (32,), 0)):
        engine = make_engine(model, "full", passes)
        store = engine.new_store()
        if sizes is not None:
            engine.passes.prepare(
                sizes, lambda name: None, {n: torch.zeros(1, 2, model.spec.hidden_dim) for n in model.language_extras}
            )
        before = engine.passes.counts.plain
        ids = (list(range(10, 30)) * 2)[:24]
        chunk = store.begin("vision", 1.0, 1.0, *model.place_text(24), causal=False)
        with torch.no_grad():
            engine.passes.run([Work(model.embed_text(ids), chunk)])
        chunk.seal()
        assert engine.passes.counts.plain - before == plain
        keys.append(store.export()[0])
    for other in keys[1:]:
        for name, wanted in keys[0].items():
            torch.testing.assert_close(other[name], wanted, rtol=1e-4, atol=1e-4)


def test_the_last_layer_ends_for_those_who_ask(any_model, monkeypatch):
    """Of frames only keys and values are wanted: what comes behind the last layer's attention is for words."""
    ended, end = [], type(any_model).end_lean

    def spied(self, *rows):
        ended.append(len(rows[0]))
        return end(self, *rows)

    monkeypatch.setattr(type(any_model), "end_lean", spied)
    engine = make_engine(any_model, "full", "packed")
    sessions = [engine.open() for _ in range(3)]
    ended.clear()
    for number, image in enumerate(make_frames(2)):
        engine.step([(session, Frame(image.image, float(number))) for session in sessions])
    assert ended == []
    requests = [session.submit(QUESTIONS[0], decoding=Decoding(max_new_tokens=3)) for session in sessions[:2]]
    engine.step([(sessions[2], Frame(make_frames(3)[2].image, 2.0))], requests)
    assert ended == [16]
