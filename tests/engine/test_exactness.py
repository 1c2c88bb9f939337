"""What must be equal, is equal: streamed and offline, together and apart, asked once and twice."""

import hashlib

import numpy as np
import pytest
import torch
from moving_pictures import make_frames

from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine
from onlooker.engine.packing import run_pass

QUESTION = "which shape left first ?"


def watch(engine, frames, **options):
    session = engine.open(**options)
    for frame in frames:
        session.push(frame)
    return session


@torch.no_grad()
def scores_after(session, question=QUESTION, **when):
    """The scores behind an answer's first token."""
    asking = session.put(question, decoding=Decoding(max_new_tokens=1), **when)
    seen = []
    while not asking.done:
        (scores,) = run_pass(session.model, [asking.pending()])
        seen.append(scores)
        asking.accept(scores)
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
    from transformers import LlavaOnevisionForConditionalGeneration

    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_folder, attn_implementation="sdpa").eval()
    session = watch(plain, frames)
    model = plain.model
    pixels = torch.stack(model.preprocess([frame.image for frame in frames]))
    video = stock.config.video_token_id
    ids = list(model.prefix_ids())
    per_frame = 4
    for number, frame in enumerate(frames):
        # The library appends one newline embedding after the whole video: the last frame has one place more.
        ids += [*model.frame_ids(frame.time_s), *[video] * (per_frame + (number == len(frames) - 1))]
    ids += model.question_ids(QUESTION)
    offline = stock(input_ids=torch.tensor([ids]), pixel_values_videos=pixels[None]).logits[0, -1]
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


@pytest.mark.parametrize("memory", ["full", "rekv:topk=3,recent=1,window_tokens=40", "last_frames:frames=3"])
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


def test_rekv_that_recalls_everything_equals_full_memory(tiny_model, frames):
    everything = Engine(tiny_model, encoder="full", compressor="identity", memory="rekv:topk=99,window_tokens=9999")
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
    asking = session.put(QUESTION, decoding=Decoding(max_new_tokens=6))
    rest = iter(make_frames(40, seed=5))
    time_s = 5.0
    while not asking.done:
        time_s += 1.0
        saving.step([(session, Frame(next(rest).image, time_s))], [asking])
    assert asking.answer().text == calm


def test_greedy_answers_equal_the_stock_generate(tiny_folder, plain, frames):
    from transformers import LlavaOnevisionForConditionalGeneration

    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_folder, attn_implementation="sdpa").eval()
    model = plain.model
    session = watch(plain, frames[:4])
    answer = session.ask(QUESTION, max_new_tokens=8)
    video = stock.config.video_token_id
    ids = list(model.prefix_ids())
    for number, frame in enumerate(frames[:4]):
        ids += [*model.frame_ids(frame.time_s), *[video] * (4 + (number == 3))]
    ids += model.question_ids(QUESTION)
    pixels = torch.stack(model.preprocess([frame.image for frame in frames[:4]]))
    rows = stock.get_output_embeddings().weight.shape[0]
    usable = model.logits(torch.zeros(1, model.spec.hidden_dim))[0].isfinite()
    silent = [n for n in range(rows) if not usable[n]]
    made = stock.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        pixel_values_videos=pixels[None],
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=silent,
    )[0, len(ids) :].tolist()
    ends = model.end_ids
    until = next((n for n, token in enumerate(made) if token in ends), len(made))
    assert answer.text == model.decode_text(made[:until]).strip()
    assert np.isfinite(answer.timing.total_s)
