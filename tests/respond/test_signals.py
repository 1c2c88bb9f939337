"""What a frame tells beside its tokens: exact on every family, in packed passes, without a mark on the stream."""

import json
import math

import pytest
import torch
from stock_models import FAMILIES
from tiny import add_signals, make_family_folder

from onlooker.core.contracts import SPEAK, Decision, Moment, ResponsePolicy
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.engine import Decoding, Engine
from onlooker.engine.probing import Retelling
from onlooker.models import load
from onlooker.respond import Clock, Heads, Rule, Silence, Surprise, Sved

PROMPT = "what is happening in the video ?"
SAID = "a red square left first , a blue circle ."
MEMORIES = ("full", "sliding_window:window_tokens=30", "rekv:topk=3,recent=2,window_tokens=40")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return add_signals(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def single(folder):
    return load(folder, device="cpu", pairs=False)


def make_engine(model, memory="full", passes="plain", **more) -> Engine:
    return Engine(model, encoder="full", compressor="identity", memory=memory, passes=passes, **more)


def clip(count: int, seed: int = 0):
    from test_rules_on_streams import pictures

    return pictures(count, seed)


def watched(engine: Engine, frames, *rules: Rule):
    session = engine.open()
    watch = session.watch(rules)
    for frame in frames:
        watch.look(frame, session.push(frame))
    return session, watch


def told_word_by_word(engine: Engine, session, ids) -> float:
    """The perplexity of an answer that is decoded, each of its tokens forced: one pass a token."""

    class Forced:
        sampled, looks_back = False, False

        def __init__(self):
            self.losses = []

        def draw(self, scores, read, said):
            token = ids[len(said)]
            self.losses.append(-float(scores.double().log_softmax(-1)[token]))
            return token

    forced = Forced()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onlooker.engine.request.Sampler", lambda *args: forced)
        asking = session.submit(PROMPT, decoding=Decoding(max_new_tokens=len(ids)))
        while not asking.done:
            engine.step_requests([asking])
    return math.exp(sum(forced.losses) / len(forced.losses))


def retold(engine: Engine, sessions, ids) -> list[float]:
    retellings = [Retelling(session, PROMPT, ids) for session in sessions]
    while pending := [one for one in retellings if not one.done]:
        engine.step_requests(pending)
    return [one.perplexity for one in retellings]


@pytest.mark.parametrize(("memory", "refiner"), [*((memory, "none") for memory in MEMORIES), ("full", "fastv")])
def test_what_was_said_is_scored_at_once_as_word_by_word(model, memory, refiner):
    engine = make_engine(model, memory, refiner=refiner)
    ids = model.retrieval_ids(SAID)
    assert len(ids) > 5
    session, _ = watched(engine, clip(9))
    assert retold(engine, [session], ids)[0] == pytest.approx(told_word_by_word(engine, session, ids), rel=1e-4)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("sizes", [(), (16,)])
def test_several_streams_are_scored_in_one_packed_step_and_none_is_marked(single, memory, sizes):
    """Also in passes shorter than what is told, which cut it."""
    ids = single.retrieval_ids(SAID)
    plain, packed = make_engine(single, memory), make_engine(single, memory, "packed")
    if sizes and single.language_extras:
        pytest.skip("captured passes of this family need an example of its rows")
    if sizes:
        packed.passes.prepare(sizes, lambda name: None)
    wanted = [retold(plain, [watched(plain, clip(7, seed))[0]], ids)[0] for seed in range(3)]
    sessions = [watched(packed, clip(7, seed))[0] for seed in range(3)]
    before = [session.store.export()[0] for session in sessions], [session.stats() for session in sessions]
    packed.passes.counts.passes = 0
    assert retold(packed, sessions, ids) == pytest.approx(wanted, rel=2e-4)
    if not sizes:
        assert packed.passes.counts.passes == 1 + memory.startswith("rekv"), "three streams, one pass (and the search)"
    for n, session in enumerate(sessions):
        for name, tensor in session.store.export()[0].items():
            torch.testing.assert_close(tensor, before[0][n][name], rtol=0, atol=0)
        assert session.stats() == before[1][n]


# ----------------------------------------------------------------------------- from the last hidden state of a frame


@torch.no_grad()
def ends_by_hand(engine: Engine, frames) -> list[torch.Tensor]:
    """The last hidden state of every frame, from the reference pass over its work alone."""
    from onlooker.kvstore import PackedAttention

    ends, session, run = [], engine.open(), engine.passes.run

    def spying(works):
        (work,) = works
        attention = PackedAttention([(work.segment, len(work.embeddings))], engine.model.rotary)
        ends.append(engine.model.extend(work.embeddings, attention, work.extras)[-1])
        return [None]

    engine.passes.run = spying
    for frame in frames:
        session.push(frame)
    engine.passes.run = run
    return ends


class Records(ResponsePolicy):
    """Needs every signal of a frame, and remembers what it was shown."""

    needs = frozenset({"silence_probability", "surprise", "heads"})

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def new_state(self) -> StreamState:
        return StreamState()

    def decide(self, moment: Moment, state: StreamState) -> Decision:
        self.moments.append(moment)
        return SPEAK


@torch.no_grad()
@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_silence_and_heads_are_those_of_the_frames_last_token(single, passes):
    """Against a pass of each frame's tokens alone; several streams in one step, and one that nobody listens to."""
    frames = [clip(9, seed) for seed in range(3)]
    hidden = [ends_by_hand(make_engine(single), one) for one in frames]
    engine = make_engine(single, passes=passes)
    seen = [Records() for _ in range(2)]
    sessions = [engine.open() for _ in frames]
    watches = [s.watch([Rule("all", PROMPT, one)]) for s, one in zip(sessions[:2], seen, strict=True)]
    for number in range(9):
        step = [one[number] for one in frames]
        taken = engine.step(list(zip(sessions, step, strict=True)))
        for watch, frame, event in zip(watches, step, taken, strict=False):
            assert watch.due(frame, event) == [], "no pass is made for them"
            watch.take()
    (comma,) = single.silence_ids
    for n, one in enumerate(seen):
        assert len(one.moments) == 9
        for moment, end in zip(one.moments, hidden[n], strict=True):
            likely = single.logits(end[None])[0].double().softmax(-1)
            assert moment.silence_probability == pytest.approx(float(likely[comma]), rel=1e-3)
            assert moment.silence_is_likeliest == (int(likely.argmax()) == comma)
            assert list(moment.heads.values()) == pytest.approx(single.heads(end[None])[0].tolist(), abs=1e-4)
        surprise = [moment.surprise for moment in one.moments]
        assert surprise[:4] == [None] * 4 and all(value > 0 for value in surprise[4:])
        assert surprise[4:] == pytest.approx(surprises_by_hand(hidden[n])[4:], rel=1e-2)
    assert sessions[2].heard.silence is None and sessions[2].usual.frames == 0, "nobody pays for what nobody wants"


def surprises_by_hand(ends):
    found = []
    for n, end in enumerate(ends):
        past = torch.stack(ends[:n]).double() if n else None
        if n < 4:
            found.append(None)
            continue
        variance = past.var(0, unbiased=False)
        floor = variance.mean() * 1e-2
        found.append(float(((end.double() - past.mean(0)).square() / torch.maximum(variance, floor)).mean()))
    return found


@torch.no_grad()
@pytest.mark.proves("videollm_online", 2)
def test_threshold_0_is_plain_argmax_on_every_frame(single):
    frames = clip(24)
    (comma,) = single.silence_ids
    ends = ends_by_hand(make_engine(single), frames)
    # Silence made likely on about half of the frames, so that both are seen.
    scores = torch.stack([single.logits(end[None])[0] for end in ends])
    lift = float((scores.amax(-1) - scores[:, comma]).median())
    logits = single.logits

    def lifted(hidden):
        out = logits(hidden).clone()
        out[:, comma] += lift
        return out

    single.logits = lifted
    try:
        for theta in (0.0, 0.5):
            _, watch = watched(make_engine(single), frames, Rule("s", PROMPT, Silence(theta, quiet_s=0.0), 0.0))
            spoke = [look.outcome == "speak" for look in watch.looks("s")]
            likely = torch.stack([lifted(end[None])[0] for end in ends]).softmax(-1)
            likely[:, comma][likely[:, comma] < theta] = 0
            wanted = [int(row.argmax()) != comma for row in likely]
            assert spoke == wanted and (theta > 0 or len(set(spoke)) == 2)
    finally:
        del single.logits


def test_frames_that_wait_tell_with_their_patch(model):
    _, watch = watched(make_engine(model), clip(8), Rule("s", PROMPT, Silence(), 0.0))
    assert len(watch.looks("s")) == 8 // model.patch_frames


# ----------------------------------------------------------------------------------------------------- what comes of it


def test_a_rule_that_answers_says_what_the_question_says(single):
    """The reply is the answer to its prompt at that moment; the stream does not know of it, and it is not counted."""
    engine, frames = make_engine(single), clip(6)
    rule = Rule("tell", PROMPT, Clock(period_s=2, first_s=0), then="answer", longest=6)
    session, alone = engine.open(), engine.open()
    watch, said = session.watch([rule]), []
    for frame in frames:
        alerts = watch.look(frame, session.push(frame))
        alone.push(frame)
        for alert in alerts:
            said.append((alert.time_s, alert.text))
            assert alert.text == alone.ask(PROMPT, max_new_tokens=6).text
            assert alert.then == "answer" and alert.evidence is frame
    assert said[0][0] == 0.0 and len(said) >= 2
    assert session.stats().answers == 0 and session.stats().tokens_read == alone.stats().tokens_read
    status = watch.status()[0]
    assert (status.said_s, status.said) == (4.0, said[-1][1]) and status.alerts + status.withheld == 3


def test_a_rule_that_notes_writes_into_the_memory(single):
    engine = make_engine(single)
    rule = Rule("tell", PROMPT, Clock(period_s=3, first_s=0), then="note", longest=4)
    session, watch = watched(engine, clip(7), rule)
    notes = [span for span in session.store.spans if span.kind == "caption"]
    assert [span.start_s for span in notes][:1] == [0.0] and len(notes) == watch.status()[0].alerts >= 1


class Hands(ResponsePolicy):
    """Hands on whatever it sees."""

    def new_state(self) -> StreamState:
        return StreamState()

    def decide(self, moment: Moment, state: StreamState) -> Decision:
        return Decision("delegate", 0.5, 0.4)


def test_what_is_delegated_is_an_alert_with_its_evidence(single):
    session = make_engine(single).open()
    watch, (frame,) = session.watch([Rule("hard", PROMPT, Hands(), then="answer")]), clip(1)
    if single.patch_frames > 1:
        return
    (alert,) = watch.look(frame, session.push(frame))
    assert (alert.then, alert.text, alert.evidence) == ("delegate", None, frame)


def test_the_same_words_nothing_and_the_veto_are_withheld(single):
    engine, frames = make_engine(single), clip(1) * 1
    session = engine.open()
    session.push(frames[0])
    first = session.ask(PROMPT, max_new_tokens=4).text
    for veto, said in (("", 1), (first.upper()[:3], 0)):
        rule = Rule("tell", PROMPT, Clock(period_s=1, first_s=0), 0.0, "answer", 4, veto)
        with engine.open() as stream:
            watch, taken = stream.watch([rule]), stream.push(frames[0])
            told = sum(len(watch.look(frames[0], type(taken)(float(n), 0, 4, 4, True, None))) for n in range(4))
            assert (told, watch.status()[0].withheld) == (said, 4 - said)


def test_sved_looks_at_its_own_words_and_speaks_when_they_no_longer_fit(single):
    """The strip holds ratios of perplexities that are derived here again from questions put by hand."""
    engine, frames = make_engine(single), clip(10)
    rule = Rule("narrate", PROMPT, Sved(alpha=1.05, quiet_s=0.0), 0.0, "answer", 6)
    session, watch = engine.open(), None
    watch, alone, wanted, said, first = session.watch([rule]), engine.open(), [], None, []
    for frame in frames:
        alone_taken = alone.push(frame)
        if said is not None:
            first.append(math.log(retold(engine, [alone], said)[0]))
            ratio = math.exp(first[-1] - sum(first[:2]) / 2) if len(first) > 2 else 1.0
            wanted.append((alone_taken.time_s, ratio))
        for alert in watch.look(frame, session.push(frame)):
            said, first = alone.submit(PROMPT, decoding=Decoding(6)), []
            while not said.done:
                engine.step_requests([said])
            assert said.answer().text == alert.text
            said = said.said
        if watch.status()[0].withheld:
            break
    looks = [(look.time_s, look.score) for look in watch.looks("narrate")][1:]
    count = min(len(looks), len(wanted))
    assert count >= 3 and looks[:count] == [(t, pytest.approx(r, rel=1e-3)) for t, r in wanted[:count]]


# ------------------------------------------------------------------------------------------------------ saved, refused


@pytest.mark.parametrize("how", ["saved", "forked"])
def test_what_was_said_when_goes_on_in_a_saved_session(single, how):
    engine, frames = make_engine(single), clip(14)
    rules = [
        Rule("narrate", PROMPT, Sved(alpha=1.2, quiet_s=2), 0.0, "answer", 5),
        Rule("new", PROMPT, Surprise(2.0, quiet_s=0)),
        Rule("clock", PROMPT, Clock(period_s=4)),
    ]

    def go_on(session, watch, some):
        return [(a.rule, a.time_s, a.text) for frame in some for a in watch.look(frame, session.push(frame))]

    session, watch = watched(engine, frames[:7], *rules)
    if how == "saved":
        saved = session.export()
        json.dumps(saved.facts)
        again = engine.load(saved)
    else:
        again = session.fork()
    other = again.watch([*rules[:2], Rule("clock", PROMPT, Clock(period_s=3.0))])
    assert other.status()[0].said == watch.status()[0].said != ""
    assert other.status()[0].said_s == watch.status()[0].said_s
    wanted, got = go_on(session, watch, frames[7:]), go_on(again, other, frames[7:])
    assert [one for one in wanted if one[0] != "clock"] == [one for one in got if one[0] != "clock"]
    assert {t for name, t, _ in got if name == "clock"} == {10.0, 13.0}, "a rule with other settings begins anew"
    assert other.looks("narrate")[-1] == watch.looks("narrate")[-1]


def test_what_a_model_does_not_offer_is_refused_by_name(tiny_model, single):
    session = make_engine(tiny_model).open()
    for policy in (Silence(), Heads()):
        with pytest.raises(ModelError, match=r"needs (silence_probability|heads), which .* does not offer"):
            session.watch([Rule("a", PROMPT, policy)])
    with pytest.raises(ModelError, match=r"no such head; given: urgent; .*informative\+relevance"):
        make_engine(single).open().watch([Rule("a", PROMPT, Heads(("urgent",)))])
    with pytest.raises(ModelError, match="reads while watching"):
        make_engine(single, "last_frames").open().watch([Rule("a", PROMPT, Surprise())])
    with pytest.raises(InputError, match="says nothing"):
        Rule("a", PROMPT, Sved())


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"silence": ["a red square"]}, "silence is one token"),
        ({"heads": ["informative", "third"]}, r"a head is \[1 or 2, hidden\]; given: third"),
    ],
)
def test_damaged_signals_are_refused(tmp_path, own, words):
    folder = add_signals(make_family_folder("llava_onevision", tmp_path))
    config = json.loads((folder / "config.json").read_text())
    config["onlooker"] |= own
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load(folder, device="cpu")
    (folder / "heads.safetensors").unlink()
    with pytest.raises(ModelError):
        load(folder, device="cpu")
