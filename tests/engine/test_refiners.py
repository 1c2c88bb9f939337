"""Refiners in an engine: on every family and kind of memory, in plain and packed passes, and never on the stream."""

import random

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core import registry
from onlooker.core.contracts import Look
from onlooker.core.errors import InputError, ModelError
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.engine import Decoding, Engine
from onlooker.models import load

QUESTIONS = ("what is happening in the video ?", "which shape left first ?")
MEMORIES = ("full", "rekv:topk=2,recent=1,window_tokens=30", "last_frames:frames=4")
OF_ROWS = [name for name in registry.names("refiner") if "rows" in registry.make("refiner", name).takes]


OF_TOKENS = [
    "b_vllm:ratio=0.3",
    "tifre:ratio=0.5,fold=0.25",
    "tifre:frames=1",
    "iva:fine=1",
    "ppllava",
    "ppllava:kernel=published",
]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


def watching(model, refiner, memory="full", passes="plain"):
    settings = {"encoder": "full", "compressor": "uniform:keep=6", "memory": memory, "passes": passes}
    session = Engine(model, **settings, refiner=refiner).open()
    for frame in make_frames(8):
        session.push(frame)
    return session


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_budget_for_everything_changes_no_answer(model, memory):
    wanted = watching(model, "none", memory).ask(QUESTIONS[0], max_new_tokens=4)
    for name in OF_ROWS:
        got = watching(model, f"{name}:ratio=1.0", memory).ask(QUESTIONS[0], max_new_tokens=4)
        assert (got.text, got.usage) == (wanted.text, wanted.usage)
        assert [(c.start_s, c.end_s) for c in got.citations] == [(c.start_s, c.end_s) for c in wanted.citations]
        for one, other in zip(got.citations, wanted.citations, strict=True):
            assert (one.share, one.recalled) == pytest.approx((other.share, other.recalled), abs=1e-4)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", OF_ROWS)
def test_packed_equals_plain_and_the_stream_is_left_alone(model, memory, name):
    told = []
    for passes in ("plain", "packed"):
        session = watching(model, f"{name}:ratio=0.3", memory, passes)
        first, again = (session.ask(QUESTIONS[0], max_new_tokens=4) for _ in range(2))
        assert (first.text, first.usage, first.citations) == (again.text, again.usage, again.citations)
        told.append(first)
        whole = watching(model, "none", memory).ask(QUESTIONS[0], max_new_tokens=4)
        assert first.usage.context_tokens < whole.usage.context_tokens
        if passes == "packed" and (name != "b_vllm" or memory != MEMORIES[2]):  # which refines tokens there
            assert 0 < session._engine.passes.counts.plain < session._engine.passes.counts.passes
    assert (told[0].text, told[0].usage) == (told[1].text, told[1].usage)
    for one, other in zip(told[0].citations, told[1].citations, strict=True):
        assert (one.start_s, one.end_s) == (other.start_s, other.end_s)
        assert one.share == pytest.approx(other.share, abs=1e-4)


@pytest.mark.parametrize("refiner", OF_TOKENS)
def test_fewer_tokens_are_read_of_memories_that_hold_tokens(model, refiner):
    told = []
    for passes in ("plain", "packed"):
        session = watching(model, refiner, "last_frames:frames=6", passes)
        first, again = (session.ask(QUESTIONS[0], max_new_tokens=4) for _ in range(2))
        assert (first.text, first.usage, first.citations) == (again.text, again.usage, again.citations)
        told.append(first)
        assert passes == "plain" or session._engine.passes.counts.plain == 0, "all of it is packed"
    whole = watching(model, "none", "last_frames:frames=6").ask(QUESTIONS[0], max_new_tokens=4)
    assert (told[0].text, told[0].usage) == (told[1].text, told[1].usage)
    assert told[0].usage.context_tokens < whole.usage.context_tokens
    assert told[0].citations and all(cited.end_s <= 7.0 for cited in told[0].citations)


def test_several_questions_in_one_step_are_as_one_by_one(model):
    session = watching(model, "fastv:ratio=0.3", passes="packed")
    alone = [session.ask(question, max_new_tokens=4).text for question in QUESTIONS]
    askings = [session.submit(question, decoding=Decoding(max_new_tokens=4)) for question in QUESTIONS]
    while going := [asking for asking in askings if not asking.done]:
        session._engine.step([], going)
    assert [asking.answer().text for asking in askings] == alone


def test_refined_keys_leave_the_store_as_it_was(model):
    session = watching(model, "prunevid2:ratio=0.3")
    before = {name: tensor.clone() for name, tensor in session.store.export()[0].items()}
    session.ask(QUESTIONS[0], max_new_tokens=4)
    after = session.store.export()[0]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_refiner_of_what_the_memory_does_not_hold_is_refused(model):
    tokens = [name for name in registry.names("refiner") if registry.make("refiner", name).takes == {"tokens"}]
    for name in tokens:
        with pytest.raises(ModelError, match="refines tokens"):
            Engine(model, memory="full", refiner=name)


def of_frames(made, question, fits, frames=4):
    """Frames of two by three tokens, of which those in `fits` lie along the second word of the question."""
    recalled = []
    for number in range(frames):
        features = torch.randn(6, 8, generator=made) * 0.1 + (5.0 * question[1] if number in fits else 0.0)
        tokens = VisualTokens.of_frame(features, (2, 3), number, float(number))
        recalled.append(Unread(tokens, float(number), float(number)))
    return recalled


def test_iva_reads_the_frame_that_fits_in_full_and_the_others_coarsely():
    """The frame whose tokens lie along a word of the question keeps all of them."""
    question = torch.eye(8)[:2]
    recalled = of_frames(torch.Generator().manual_seed(2), question, {2})
    read = registry.make("refiner", "iva:fine=1,coarse=2").refine(recalled, question)
    assert [len(one.content) for one in read] == [2, 2, 6, 2]
    assert all(float(one.content.weight.sum()) == 6 for one in read)


def test_tifre_reads_the_frames_that_fit_as_they_are_unless_it_is_told_to_fold():
    """Folded: a token of a key frame is the weighted mean of it and those at its place in the frames most like it."""
    question = torch.eye(8)[:2]
    recalled = of_frames(torch.Generator().manual_seed(3), question, {1, 3}, frames=5)
    read = registry.make("refiner", "tifre:frames=2").refine(recalled, question)
    assert len(read) == 2 and read[0] is recalled[1] and read[1] is recalled[3]
    folded = registry.make("refiner", "tifre:frames=2,fold=0.25").refine(recalled, question)
    means = torch.stack([one.content.features.mean(0) for one in recalled])
    likeness = torch.nn.functional.cosine_similarity(means[:, None], means[None, [1, 3]], dim=-1)
    nearest = torch.tensor([1, 3])[likeness.argmax(1)].tolist()
    for key, one in zip((1, 3), folded, strict=True):
        others = [recalled[n].content.features for n in (0, 2, 4) if nearest[n] == key]
        wanted = (recalled[key].content.features + 0.25 * sum(others)) / (1 + 0.25 * len(others))
        assert one.start_s == recalled[key].start_s
        torch.testing.assert_close(one.content.features, wanted)
    with pytest.raises(InputError, match="weighs from 0 to 1"):
        registry.make("refiner", "tifre:fold=1.5")


@pytest.mark.proves("b_vllm", 1)
@pytest.mark.parametrize("seed", range(40))
def test_b_vllm_never_reads_more_than_its_budget(seed):
    """Tokens of frames of any sizes, and rows of any blocks, by any words: counted one by one, notes left out."""
    made, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    recalled = []
    for number in range(chance.randint(1, 12)):
        if number and chance.random() < 0.25:
            recalled.append(Unread(torch.tensor([5, 6, 7]), float(number), float(number), "text"))
            continue
        rows, cols = chance.randint(1, 5), chance.randint(1, 5)
        features = torch.randn(rows * cols, 8, generator=made) * chance.choice((0.0, 0.1, 3.0))
        recalled.append(
            Unread(VisualTokens.of_frame(features, (rows, cols), number, float(number)), float(number), float(number))
        )
    words = torch.randn(chance.randint(1, 9), 8, generator=made)
    total = sum(len(one.content) for one in recalled if one.kind == "vision")
    for budget in {1, chance.randint(1, total), total, total + 3}:
        read = registry.make("refiner", f"b_vllm:tokens={budget}").refine(recalled, words)
        assert 1 <= sum(len(one.content) for one in read if one.kind == "vision") <= budget
        assert [one for one in read if one.kind != "vision"] == [one for one in recalled if one.kind != "vision"]
    sizes = [chance.randint(1, 9) for _ in range(chance.randint(1, 10))]
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    vision = torch.tensor([n % 4 != 3 for n in range(len(sizes))])[block]
    keys, own = (torch.randn(2, count, 16, generator=made) for count in (len(block), len(words)))
    look = Look(0, 2, own.repeat(2, 1, 1), keys, own, 0.25, block, vision)
    for budget in {1, chance.randint(1, int(vision.sum())), int(vision.sum()) + 1}:
        kept = registry.make("refiner", f"b_vllm:tokens={budget}").refine_rows(look)
        assert 1 <= int((kept & vision).sum()) <= budget
