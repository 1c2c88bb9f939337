"""Rules on real streams: the probability of yes, many rules in one batch, and the pocket model's alerts."""

import numpy as np
import pytest
import torch

from onlooker.core.contracts import SPEAK, Decision, Moment, ResponsePolicy
from onlooker.core.errors import CapacityError, InputError, ModelError, SessionClosed
from onlooker.core.events import Alert, Failed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.engine.probing import Probe, YesNo
from onlooker.respond import Rule, Threshold
from onlooker.world import make_episode

PROMPTS = ("is a red square left ?", "is a blue circle in the video ?", "yes or no ?")


def pictures(count: int, seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [Frame(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8), float(number)) for number in range(count)]


@pytest.fixture(params=["full", "rekv:topk=3,recent=2,window_tokens=40", "last_frames:frames=3"])
def engine(request: pytest.FixtureRequest, tiny_model) -> Engine:
    return Engine(tiny_model, encoder="full", compressor="identity", memory=request.param)


def probe_of(engine: Engine, session, prompt: str) -> Probe:
    probe = Probe(session, prompt, YesNo.of(engine.model))
    while not probe.done:
        engine.step_requests([probe])
    return probe


def test_the_words_are_every_spelling_with_a_token_of_its_own(tiny_model) -> None:
    words = YesNo.of(tiny_model)
    assert {tiny_model.decode_text([one]).strip().lower() for one in words.yes} == {"yes"}
    assert {tiny_model.decode_text([one]).strip().lower() for one in words.no} == {"no"}


def test_the_probability_is_that_of_the_first_word(engine: Engine) -> None:
    """Against the same question asked as a question, whose scores are read before anything is drawn."""
    with engine.open() as session:
        for frame in pictures(8):
            session.push(frame)
        for prompt in PROMPTS:
            request, scores = session.submit(prompt), None
            while scores is None:
                work = request.pending()
                (scores,) = _one_pass(engine, work)
                if scores is None:
                    request.accept(None)
            request.cancel()
            chances, words = scores.double().softmax(0), YesNo.of(engine.model)
            yes, no = (float(chances[list(ids)].sum()) for ids in (words.yes, words.no))
            probe = probe_of(engine, session, prompt)
            assert probe.probability == pytest.approx(yes / (yes + no), rel=1e-4)
            assert probe.mass == pytest.approx(yes + no, rel=1e-4)


@torch.no_grad()
def _one_pass(engine: Engine, work):
    from onlooker.engine.packing import run_pass

    return run_pass(engine.model, [work])


def test_a_look_leaves_no_mark(engine: Engine) -> None:
    with engine.open() as watched, engine.open() as alone:
        watch = watched.watch([Rule(f"r{number}", prompt) for number, prompt in enumerate(PROMPTS)])
        for frame in pictures(8):
            watch.look(frame, watched.push(frame))
            alone.push(frame)
        assert watched.ask(PROMPTS[0]).text == alone.ask(PROMPTS[0]).text
        stats, plain = watched.stats(), alone.stats()
        assert (stats.answers, stats.tokens_read) == (plain.answers, plain.tokens_read) == (1, plain.tokens_read)
        assert stats.memory_bytes == plain.memory_bytes


def test_many_rules_over_many_streams_share_passes_and_equal_each_alone(tiny_model) -> None:
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="rekv:topk=3,recent=2,window_tokens=40")
    clips = [pictures(6, seed) for seed in range(3)]
    rules = [Rule(f"r{number}", prompt) for number, prompt in enumerate(PROMPTS)]
    alone = []
    for clip in clips:
        with engine.open() as session:
            for frame in clip:
                session.push(frame)
            alone.append([probe_of(engine, session, rule.prompt).probability for rule in rules])

    sessions = [engine.open() for _ in clips]
    watches = [session.watch(rules) for session in sessions]
    probes: list[Probe] = []
    for number in range(6):
        frames = [clip[number] for clip in clips]
        # The looks at the last frames ride with the new frames, and a question rides with both.
        taken = engine.step(list(zip(sessions, frames, strict=True)), [probe for probe in probes if not probe.done])
        while rest := [probe for probe in probes if not probe.done]:
            engine.step_requests(rest)
        assert not [alert for watch in watches for alert in watch.take()]
        probes = []
        for watch, frame, event in zip(watches, frames, taken, strict=True):
            assert isinstance(event, FrameTaken)
            probes += watch.due(frame, event)
    before = engine.passes.counts.passes
    while rest := [probe for probe in probes if not probe.done]:
        engine.step_requests(rest)
    assert engine.passes.counts.passes - before == 2, (
        "nine looks, each a search for memories and a prompt, take two passes"
    )
    for watch in watches:
        watch.take()
    together = [[status.probability for status in watch.status()] for watch in watches]
    np.testing.assert_allclose(together, alone, rtol=2e-4)


class Recorded(StreamState):
    pass


class Always(ResponsePolicy):
    """Speaks at every moment, and needs nothing of the model."""

    def new_state(self) -> Recorded:
        return Recorded()

    def decide(self, moment: Moment, state: StreamState) -> Decision:
        assert moment.speak_probability is None and moment.kept_ratio == 1.0
        return SPEAK


def test_a_rule_that_needs_no_probability_costs_no_pass(tiny_model) -> None:
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    with engine.open() as session:
        watch = session.watch([Rule("clock", "anything", Always(), every_s=3)])
        frames = pictures(8)
        alerts = []
        for frame in frames:
            taken = session.push(frame)
            assert watch.due(frame, taken) == []
            alerts += watch.take()
        assert [alert.time_s for alert in alerts] == [0.0, 3.0, 6.0]
        assert alerts[1] == Alert("clock", "anything", 3.0, None, 3.0, frames[3])
        told = [event for event in session.events() if isinstance(event, Alert)]
        assert [event.time_s for event in told] == [0.0, 3.0, 6.0]
        assert all(event.evidence is None for event in told), "events wait in memory: they keep no pictures"


def test_a_look_in_flight_is_not_overtaken(tiny_model) -> None:
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    with engine.open() as session:
        watch = session.watch([Rule("a", PROMPTS[0]), Rule("b", PROMPTS[1])])
        first, second, third = pictures(3)
        probes = watch.due(first, session.push(first))
        assert len(probes) == 2 and watch.due(second, session.push(second)) == []
        while not all(probe.done for probe in probes):
            engine.step_requests([probe for probe in probes if not probe.done])
        watch.take()
        again = watch.due(third, session.push(third))
        again[0].cancel()
        watch.remove("b")
        assert again[1].done, "a rule that is gone lets go of its look"
        watch.take()
        (status,) = watch.status()
        assert (status.looks, status.skipped) == (1, 2)


def test_a_look_without_room_is_skipped_and_told(tiny_model) -> None:
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    with engine.open() as session:
        watch = session.watch([Rule("a", PROMPTS[0])])
        (frame,) = pictures(1)
        taken = session.push(frame)
        session.store.question = _no_room  # type: ignore[method-assign]
        assert watch.due(frame, taken) == []
        assert [type(event) for event in session.events()] == [FrameTaken, Failed]
        assert watch.status()[0].skipped == 1


def _no_room(*args, **more):
    raise CapacityError("what the question recalls does not fit")


def test_rules_come_and_go(tiny_model) -> None:
    engine = Engine(tiny_model)
    session = engine.open()
    watch = session.watch()
    watch.add(Rule("a", PROMPTS[0]))
    with pytest.raises(InputError, match="two rules have one name"):
        watch.add(Rule("a", PROMPTS[1]))
    watch.remove("a")
    with pytest.raises(InputError, match="no rule of that name"):
        watch.remove("a")
    assert watch.rules == () and watch.status() == []
    with pytest.raises(InputError, match="nothing to look at"):
        Probe(session, PROMPTS[0], YesNo.of(tiny_model))
    session.close()
    with pytest.raises(SessionClosed):
        session.watch()


def test_a_model_without_the_words_is_refused(tiny_model) -> None:
    class Wordless:
        spec = tiny_model.spec

        def retrieval_ids(self, text: str) -> list[int]:
            return [1, 2] if text.strip().lower() == "no" else [3]

    with pytest.raises(ModelError, match="no single token for 'no'"):
        YesNo.of(Wordless())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- the pocket model


@pytest.fixture(scope="module")
def pocket() -> Engine:
    return Engine.from_pretrained("pocket-aware", device="cpu")


@pytest.mark.slow
def test_the_pocket_model_tells_when_a_thing_appears_and_is_silent_when_it_does_not(pocket: Engine) -> None:
    """Four episodes, all their "tell me when" requests at once, with the default rule."""
    told = came = false = never = 0
    for seed in range(100, 104):
        episode = make_episode(seed, "test", duration_s=30)
        asked = episode.questions(6, 0, tasks=("proactive",), between_s=(1.5, 3))
        alerts: list[Alert] = []
        with pocket.open() as session:
            watch = session.watch([Rule(f"r{number}", one.question) for number, one in enumerate(asked)])
            for frame in episode.frames(fps=1.0):
                alerts += watch.look(frame, session.push(frame))
        for number, one in enumerate(asked):
            times = [alert.time_s for alert in alerts if alert.rule == f"r{number}"]
            if one.answer == "no":
                never, false = never + 1, false + len(times)
                continue
            ((start, stop),) = one.windows
            came += 1
            told += any(start <= time_s <= stop + Threshold().hold_s + 1 for time_s in times)
            false += sum(time_s < start for time_s in times)
    assert came >= 8 and never >= 6, "the episodes ask for both"
    assert told >= 0.75 * came
    assert false <= 0.15 * (came + never)


def test_a_flickering_thing_in_pocket_world_is_one_alert() -> None:
    """A triangle that is there for two seconds of four, forty times: a plain threshold makes twenty alerts of it."""
    engine = Engine.from_pretrained(
        "pocket", device="cpu", encoder="full", compressor="identity", memory="sliding_window:window_frames=1"
    )
    episode = make_episode(3, "test", duration_s=40, kind="small_blink")
    shown = {frame.time_s: frame.image for frame in episode.frames(fps=5.0)}
    off, on = (next(image for time_s, image in shown.items() if abs(time_s - at) < 0.01) for at in (30.4, 29.0))
    prompt = "say yes when you see a purple triangle."
    rules = [Rule("plain", prompt, Threshold(clear=0.7, hold_s=0, cooldown_s=0)), Rule("rule", prompt)]
    times: dict[str, list[float]] = {"plain": [], "rule": []}
    with engine.open() as session:
        watch = session.watch(rules)
        for second in range(80):
            frame = Frame(on if second % 4 >= 2 else off, float(second))
            for alert in watch.look(frame, session.push(frame)):
                times[alert.rule].append(alert.time_s)
                assert alert.evidence is not None and alert.evidence.time_s == alert.evidence_s
                assert alert.evidence.image is on, "the picture shows the thing, also when it is off as the rule speaks"
                assert alert.evidence.jpeg().startswith(b"\xff\xd8")
    assert len(times["plain"]) == 20
    assert len(times["rule"]) == 1


def test_looks_are_no_more_than_every_so_often(pocket: Engine) -> None:
    episode = make_episode(1, "test", duration_s=12)
    with pocket.open() as session:
        watch = session.watch([Rule("slow", "say yes when you see a blue heart.", every_s=2.5)])
        for frame in episode.frames(fps=2.0):
            watch.look(frame, session.push(frame))
        assert watch.status()[0].looks == 5
        assert watch.status()[0].mass is not None and watch.status()[0].mass > 0.9
