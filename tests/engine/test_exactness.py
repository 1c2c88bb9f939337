"""What must be equal, is equal: streamed and offline, together and apart, asked once and twice."""

import hashlib

import numpy as np
import pytest
import torch
from dense_attention import DenseAttention
from moving_pictures import make_frames
from stock_models import FAMILIES, load_stock, offline_inputs
from tiny import make_family_folder

from onlooker.compress.uniform import Uniform
from onlooker.core.frame import Frame
from onlooker.core.tokens import VisualTokens
from onlooker.encode.full import Full
from onlooker.engine import Decoding, Engine
from onlooker.engine.packing import run_pass
from onlooker.models import load

QUESTION = "which shape left first ?"


@pytest.fixture(scope="module", params=FAMILIES)
def tiny_folder(request, tmp_path_factory):
    """A tiny checkpoint of each family in turn: every test here runs on all of them."""
    return make_family_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tiny_model(tiny_folder):
    return load(tiny_folder, device="cpu", pairs=False)


def watch(engine, frames, **options):
    session = engine.open(**options)
    for frame in frames:
        session.push(frame)
    return session


@torch.no_grad()
def scores_after(session, question=QUESTION, **when):
    """The scores behind an answer's first token."""
    request = session.submit(question, decoding=Decoding(max_new_tokens=1), **when)
    seen = []
    while not request.done:
        (scores,) = run_pass(session.model, [request.pending()])
        seen.append(scores)
        request.accept(scores)
    return next(s for s in seen if s is not None)


def digest(store):
    tensors, meta = store.export()
    whole = hashlib.sha256(repr(meta).encode())
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


@torch.no_grad()
def test_frame_by_frame_with_full_memory_equals_one_offline_forward(tiny_folder, plain, frames):
    session = watch(plain, frames)
    stock = load_stock(tiny_folder)
    offline = stock(**offline_inputs(stock, plain.model, frames, QUESTION)).logits[0, -1]
    streamed = scores_after(session)
    usable = streamed.isfinite()
    assert usable.sum() > 100
    torch.testing.assert_close(streamed[usable], offline[usable], rtol=1e-4, atol=1e-4)


def test_two_sessions_stepped_together_equal_two_apart(saving, tiny_model):
    clips = [make_frames(12, seed=1), make_frames(12, seed=2)]
    together = [saving.open(), saving.open()]
    for pair in zip(*clips, strict=True):
        saving.step(list(zip(together, pair, strict=True)))
    for clip, session in zip(clips, together, strict=True):
        alone = watch(saving, clip)
        torch.testing.assert_close(scores_after(session), scores_after(alone), rtol=1e-4, atol=1e-4)
        assert session.ask(QUESTION).text == alone.ask(QUESTION).text


def test_sessions_in_different_phases_do_not_touch(saving):
    early, late = make_frames(12, seed=3), make_frames(9, seed=4)
    first, second = saving.open(), saving.open()
    for number, frame in enumerate(early):
        arrivals = [(first, frame)]
        if number >= 3:
            arrivals.append((second, late[number - 3]))
        saving.step(arrivals)
    torch.testing.assert_close(scores_after(first), scores_after(watch(saving, early)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores_after(second), scores_after(watch(saving, late)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "memory",
    [
        "full",
        "rekv:topk=3,recent=1,window_tokens=40",
        "rekv:topk=2,first=1,recent=1,score=shares,window_tokens=40",
        "last_frames:frames=3",
    ],
)
def test_asking_twice_gives_the_same_answer_and_the_same_bytes(tiny_model, frames, memory):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=memory)
    session = watch(engine, frames)
    before = digest(session.store)
    first, second = session.ask(QUESTION), session.ask(QUESTION)
    assert (first.text, first.citations, first.usage) == (second.text, second.citations, second.usage)
    assert digest(session.store) == before


def test_questions_leave_no_mark_on_the_stream(saving, frames):
    quiet, asked = saving.open(), saving.open()
    for frame in frames:
        quiet.push(frame)
        asked.push(frame)
        asked.ask("what is there ?", max_new_tokens=3)
    torch.testing.assert_close(scores_after(quiet), scores_after(asked), rtol=0, atol=0)


def test_a_fork_asked_under_a_sliding_window_answers_as_if_the_window_had_slid(tiny_model, frames):
    slid = Engine(tiny_model, encoder="full", compressor="identity", memory="sliding_window:window_tokens=40")
    parks = Engine(tiny_model, encoder="full", compressor="identity", memory="rekv:window_tokens=40")
    fork = watch(parks, frames).fork()
    fork.memory = slid.memory
    assert len(fork.store.spans) > len(watch(slid, frames).store.spans)
    torch.testing.assert_close(scores_after(fork), scores_after(watch(slid, frames)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", ["", ",first=2,score=shares"])
def test_rekv_that_recalls_everything_equals_full_memory(tiny_model, frames, more):
    memory = f"rekv:topk=99,window_tokens=9999{more}"
    everything = Engine(tiny_model, encoder="full", compressor="identity", memory=memory)
    full = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    torch.testing.assert_close(
        scores_after(watch(everything, frames)), scores_after(watch(full, frames)), rtol=1e-4, atol=1e-4
    )


def test_the_future_cannot_change_a_past_answer(saving, frames):
    past = watch(saving, frames[:8])
    then = scores_after(past)
    for frame in make_frames(4, seed=9):
        past.push(Frame(frame.image, frame.time_s + 8))
    other = watch(saving, frames[:8])
    torch.testing.assert_close(scores_after(other), then, rtol=0, atol=0)


def test_asking_as_of_a_moment_equals_asking_at_that_moment(plain, frames):
    whole, half = watch(plain, frames), watch(plain, frames[:6])
    torch.testing.assert_close(scores_after(whole, at=5.5), scores_after(half), rtol=1e-4, atol=1e-4)
    assert whole.ask(QUESTION, at=5.5).text == half.ask(QUESTION).text


def test_since_hides_what_came_earlier(plain, frames):
    session = watch(plain, frames)
    answer = session.ask(QUESTION, since=6.0)
    assert answer.usage.context_tokens < session.ask(QUESTION).usage.context_tokens
    assert all(citation.start_s >= 6.0 for citation in answer.citations)


def test_last_frames_equals_a_stream_of_only_those_frames(tiny_model, plain, frames):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="last_frames:frames=4")
    torch.testing.assert_close(
        scores_after(watch(engine, frames)), scores_after(watch(plain, frames[-4:])), rtol=1e-4, atol=1e-4
    )


def test_a_question_in_flight_keeps_its_moment_while_the_stream_goes_on(saving, frames):
    session = watch(saving, frames[:6])
    calm = session.ask(QUESTION, max_new_tokens=6).text
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=6))
    rest = iter(make_frames(40, seed=5))
    time_s = 5.0
    while not request.done:
        time_s += 1.0
        saving.step([(session, Frame(next(rest).image, time_s))], [request])
    assert request.answer().text == calm


def test_greedy_answers_equal_the_stock_generate(tiny_folder, plain, frames):
    model, stock = plain.model, load_stock(tiny_folder)
    answer = watch(plain, frames[:4]).ask(QUESTION, max_new_tokens=8)
    inputs = offline_inputs(stock, model, frames[:4], QUESTION)
    usable = model.logits(torch.zeros(1, model.spec.hidden_dim))[0].isfinite()
    made = stock.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=[n for n in range(len(usable)) if not usable[n]],
    )[0, inputs["input_ids"].shape[1] :].tolist()
    until = next((n for n, token in enumerate(made) if token in model.end_ids), len(made))
    assert answer.text == model.decode_text(made[:until]).strip()
    assert np.isfinite(answer.timing.total_s)


@pytest.mark.parametrize("layout", ["keep", "pack"])
@torch.no_grad()
def test_a_pruned_stream_equals_one_dense_pass_over_what_was_kept(tiny_model, frames, layout):
    """Kept tokens bring their positions and their DeepStack rows along, in both layouts."""
    model, pruner = tiny_model, Uniform(keep=3)
    engine = Engine(model, encoder="full", compressor=pruner, memory="full", layout=layout)
    streamed = scores_after(watch(engine, frames[:5]))

    parts, rows, places, reach = [], [], [], 0

    def add(features, place, extent, deepstack=None):
        nonlocal reach
        parts.append(features)
        rows.append(torch.zeros(len(features), 2, features.shape[1]) if deepstack is None else deepstack)
        places.append(place + reach)
        reach += extent

    def add_text(ids):
        add(model.embed_text(ids), *model.place_text(len(ids)))

    add_text(model.prefix_ids())
    for number, frame in enumerate(frames[:5]):
        pixels = model.preprocess([frame.image])[0][None]
        shape = tuple(pixels.shape[1:])
        encoded = Full().encode(model.tower(shape), model.embed_patches(pixels), [Full().new_state()])
        features, grid, extras = model.project(encoded, shape)
        whole = VisualTokens.of_frame(
            features[0], grid, number, 0.0, {name: value[0] for name, value in extras.items()}
        )
        kept = pruner.compress(whole, pruner.new_state())
        assert len(kept) == 3
        add_text(model.frame_ids(frame.time_s))
        add(kept.features, *model.place_tokens(kept, layout), kept.extras.get("deepstack"))
        add_text(model.frame_closing_ids())
    closing = model.closing_embeddings()
    add(closing, *model.place_text(len(closing)))
    add_text(model.question_ids(QUESTION))
    attention = DenseAttention(model, [sum(map(len, parts))], torch.cat(places, 1))
    extras = {"deepstack": torch.cat(rows)} if model.language_extras else None
    offline = model.logits(model.extend(torch.cat(parts), attention, extras)[-1:])[0]
    usable = streamed.isfinite()
    torch.testing.assert_close(streamed[usable], offline[usable], rtol=1e-4, atol=1e-4)


def test_sizes_shapes_and_rates_may_change_in_flight(saving):
    """Another resolution, another aspect ratio, another frame rate, in one of two streams that share every step."""
    rng = np.random.default_rng(0)
    sizes = [(56, 56)] * 3 + [(84, 140)] * 3 + [(140, 84)] * 2 + [(31, 97)] + [(56, 56)] * 3
    times = np.cumsum([1.0] * 4 + [0.04] * 4 + [7.5] * 4)
    changing = [
        Frame(rng.integers(0, 256, (*size, 3), dtype=np.uint8), float(time_s))
        for size, time_s in zip(sizes, times, strict=True)
    ]
    steady = make_frames(12, seed=6)
    together = [saving.open(), saving.open()]
    for pair in zip(changing, steady, strict=True):
        saving.step(list(zip(together, pair, strict=True)))
    for clip, session in zip((changing, steady), together, strict=True):
        alone = watch(saving, clip)
        torch.testing.assert_close(scores_after(session), scores_after(alone), rtol=1e-4, atol=1e-4)
    assert together[0].ask(QUESTION, max_new_tokens=4).citations[0].end_s <= times[-1]


@torch.no_grad()
def test_a_stream_of_changing_sizes_equals_one_offline_forward(tiny_folder, plain):
    rng = np.random.default_rng(1)
    sizes = [(56, 56), (84, 140), (84, 140), (140, 84), (56, 56)]
    frames = [Frame(rng.integers(0, 256, (*s, 3), dtype=np.uint8), 0.5 * n**2) for n, s in enumerate(sizes)]
    stock = load_stock(tiny_folder)
    offline = stock(**offline_inputs(stock, plain.model, frames, QUESTION)).logits[0, -1]
    streamed = scores_after(watch(plain, frames))
    usable = streamed.isfinite()
    torch.testing.assert_close(streamed[usable], offline[usable], rtol=1e-4, atol=1e-4)
