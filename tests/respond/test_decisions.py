"""Decisions of a trained net beside the model: of a frame's tokens, the request, and what was answered."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import add_signals, make_family_folder

from onlooker.core.errors import ModelError
from onlooker.engine import Engine
from onlooker.models import load
from onlooker.respond import Clock, Dispider, Rule

PROMPT, OTHER = "what is happening in the video ?", "a red square left first"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return add_signals(make_family_folder("llava_onevision", tmp_path_factory.mktemp("decides")))


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu", pairs=None)


def clip(count: int):
    from test_rules_on_streams import pictures

    return pictures(count, 0)


def make_engine(model, memory="full", compressor="uniform:keep=3") -> Engine:
    return Engine(model, encoder="full", compressor=compressor, memory=memory)


def scores(watch, name: str) -> list[float]:
    return [look.score for look in watch.looks(name)]


@torch.no_grad()
def by_hand(model, carriers, prompt: str, said_s: list[float | None]) -> list[float]:
    """Frame by frame: the net, its own state, and when the rule spoke last before each."""
    words = model.embed_text(model.retrieval_ids(prompt)).float().mean(0)
    state = model.decider.new_state()
    out = []
    for number, (tokens, said) in enumerate(zip(carriers, said_s, strict=True)):
        since = None if said is None else number - said
        out.append(float(model.decider.decide(tokens, words[None], [since], [state])))
    return out


def watched(engine: Engine, frames, *rules: Rule, session=None):
    session = session or engine.open()
    watch, carriers = session.watch(rules), []
    for frame in frames:
        watch.look(frame, session.push(frame))
        carriers.append(session.carriers)
    return session, watch, carriers


@pytest.mark.parametrize("memory", ["full", "last_frames"])
def test_it_decides_by_what_was_kept_the_request_and_its_history(model, memory):
    """Two rules of one stream in one go; also with a memory that reads nothing while watching."""
    often, never = Dispider(1e-6, quiet_s=3), Dispider(1.0)
    rules = Rule("often", PROMPT, often, 0.0), Rule("never", OTHER, never, 0.0)
    _, watch, carriers = watched(make_engine(model, memory), clip(9), *rules)
    assert all(len(tokens) == 3 for tokens in carriers)
    said = [None, 0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 6.0, 6.0]
    assert [look.time_s for look in watch.looks("often") if look.outcome == "speak"] == [0.0, 3.0, 6.0]
    assert scores(watch, "often") == pytest.approx(by_hand(model, carriers, PROMPT, said), rel=1e-4)
    assert scores(watch, "never") == pytest.approx(by_hand(model, carriers, OTHER, [None] * 9), rel=1e-4)
    told = by_hand(model, carriers, PROMPT, [None] * 9)
    assert scores(watch, "often")[1] != pytest.approx(told[1], rel=1e-3), "the history counts"


def test_what_is_said_never_enters_the_decision(model):
    """A rule that answers at length decides as one that only tells, though its reply is decoded beside the stream."""
    policy = Dispider(1e-6, quiet_s=2)
    _, brief, _ = watched(make_engine(model), clip(8), Rule("a", PROMPT, policy, 0.0))
    _, long, _ = watched(make_engine(model), clip(8), Rule("a", PROMPT, policy, 0.0, "answer", 12))
    assert scores(long, "a") == scores(brief, "a") and long.status()[0].alerts + long.status()[0].withheld == 4


def test_a_reply_on_its_way_is_an_answer_already(model):
    """While the reply is being decoded, the decision knows that the rule has spoken."""
    engine = make_engine(model)
    session = engine.open()
    watch = session.watch([Rule("a", PROMPT, Dispider(1e-6, quiet_s=0), 0.0, "answer", 30)])
    carriers, replies = [], []
    for frame in clip(4):
        taken = session.push(frame)
        carriers.append(session.carriers)
        assert watch.due(frame, taken) == []
        watch.take()
        replies += watch.begun()
    assert len(replies) == 1 and not replies[0].done and watch.status()[0].withheld == 3
    assert scores(watch, "a") == pytest.approx(by_hand(model, carriers, PROMPT, [None, 0.0, 0.0, 0.0]), rel=1e-4)


@pytest.mark.parametrize("how", ["saved", "forked"])
def test_its_memory_goes_on_in_a_saved_session(model, how):
    engine, frames, rule = make_engine(model), clip(12), Rule("a", PROMPT, Dispider(1e-6, quiet_s=3), 0.0)
    session, watch, _ = watched(engine, frames[:6], rule)
    if how == "saved":
        saved = session.export()
        json.dumps(saved.facts)
        again = engine.load(saved)
    else:
        again = session.fork()
    _, other, _ = watched(engine, frames[6:], rule, session=again)
    for frame in frames[6:]:
        watch.look(frame, session.push(frame))
    assert scores(other, "a") == pytest.approx(scores(watch, "a")[6:], rel=1e-6)


def test_nobody_keeps_tokens_that_nobody_decides_by(model):
    session, watch, carriers = watched(make_engine(model), clip(2), Rule("a", PROMPT, Clock(), 0.0))
    assert carriers == [None, None]
    watch.add(Rule("b", PROMPT, Dispider(), 0.0))
    watch.remove("b")
    session.push(clip(3)[2])
    assert session.carriers is None


@torch.no_grad()
def test_a_trained_row_of_silence_counts_where_a_frame_ends_and_nowhere_else(folder, model):
    held = load_file(folder / "heads.safetensors")
    try:
        save_file(held | {"silence.weight": torch.full((1, 32), 0.5)}, folder / "heads.safetensors")
        trained, hidden = load(folder, device="cpu"), torch.randn(3, 32)
        (token,) = trained.silence_ids
        plain, ends = trained.logits(hidden), trained.frame_end_logits(hidden)
        torch.testing.assert_close(plain, model.logits(hidden))
        torch.testing.assert_close(ends[:, token], hidden.sum(1) / 2)
        plain[:, token] = ends[:, token]
        torch.testing.assert_close(ends, plain)
    finally:
        save_file(held, folder / "heads.safetensors")


@pytest.mark.parametrize(
    ("weights", "own", "words"),
    [
        ({"decider.key.weight": torch.zeros(16, 8)}, {}, "decision net does not fit"),
        ({}, {"decider": {"heads": 5}}, "decision net does not fit"),
        ({}, {"decider": {"size": 4}}, "decision net does not fit"),
        ({"silence.weight": torch.zeros(2, 32)}, {}, "one row for one token"),
    ],
)
def test_damaged_parts_are_refused(tmp_path, weights, own, words):
    folder = add_signals(make_family_folder("llava_onevision", tmp_path))
    save_file(load_file(folder / "heads.safetensors") | weights, folder / "heads.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["onlooker"] |= own
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load(folder, device="cpu")
