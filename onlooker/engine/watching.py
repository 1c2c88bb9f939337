"""Rules over streams: the probability of yes to a standing question, and whether it is worth an alert."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.contracts import ClipModel, MemoryPolicy, Moment, Refiner, VideoModel
from onlooker.core.errors import CapacityError, InputError, ModelError
from onlooker.core.events import Alert, Answer, Failed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.core.spans import Layout
from onlooker.core.state import StreamState
from onlooker.engine.packing import Work
from onlooker.engine.reading import Reading
from onlooker.engine.request import Request
from onlooker.engine.sampling import Decoding
from onlooker.kvstore import KVStore
from onlooker.respond import Rule, check_names

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

SPELLINGS = ("{}", " {}")
"""How a word may begin an answer: alone, and after the blank that some templates leave to the answer."""


@dataclass(frozen=True)
class YesNo:
    """The tokens that say yes and no in one model's vocabulary."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, model: VideoModel) -> "YesNo":
        """Every spelling (case, leading blank) that is one token. Raises `ModelError` when a word has none."""
        found = {}
        for word in ("yes", "no"):
            written = [form.format(case) for form in SPELLINGS for case in (word, word.capitalize(), word.upper())]
            ids = [model.retrieval_ids(text) for text in written]
            found[word] = tuple(sorted({one[0] for one in ids if len(one) == 1}))
            if not found[word]:
                raise ModelError(
                    f"the model has no single token for {word!r}, so its probability cannot be read",
                    given=model.spec.name,
                    do="choose another model for rules",
                )
        return cls(found["yes"], found["no"])

    def read(self, scores: Tensor) -> tuple[float, float]:
        """From scores `[vocabulary]`: p(yes) / (p(yes) + p(no)), and p(yes) + p(no). Waits for the device once."""
        scores = scores.float()
        words = torch.stack([torch.logsumexp(scores[list(ids)], 0) for ids in (self.yes, self.no)])
        ratio, mass = words.softmax(0)[0], (words - torch.logsumexp(scores, 0)).exp().sum()
        yes, said = torch.stack([ratio, mass]).tolist()
        return yes, said


class Probe:
    """A yes-or-no question in flight, of which only the first word's probability is wanted.

    It is stepped like an `Request` (`pending`, `accept`, `done`) and may share passes with frames and questions. It is
    put to a fork of the memory: the stream does not change, and no answer is counted. Afterwards `probability` is that
    of yes against no, and `mass` the share of all words that yes and no have together: when that is small, the prompt
    was no yes-or-no question to this model.
    """

    def __init__(self, session: "Session", prompt: str, words: YesNo) -> None:
        session.check_open()
        if session.time_s is None:
            raise InputError("there is nothing to look at yet", given="no frame was pushed", do="push a frame first")
        self.time_s, self.session = session.time_s, session
        self.probability: float | None = None
        self.mass: float | None = None
        self._words = words
        asked = _Quiet(
            session.model,
            session.memory,
            session.refiner,
            session.states,
            session.store,
            session.layout,
            session.held,
        )
        self._request = Request(asked, prompt, self.time_s, (0.0, self.time_s), Decoding(max_new_tokens=1))

    @property
    def done(self) -> bool:
        """True when the probability is known, or the probe was cancelled."""
        return self._request.done

    def pending(self) -> Work:
        """The tokens that have to be read next."""
        return self._request.pending()

    def accept(self, scores: Tensor | None) -> str:
        """Take the scores of the pending work; a probe says nothing."""
        if scores is None:
            return self._request.accept(None)
        self.probability, self.mass = self._words.read(scores)
        self.cancel()
        return ""

    def cancel(self) -> None:
        """Stop here and let go of the view of the memory."""
        self._request.cancel()


@dataclass
class _Quiet:
    """A session as a question sees it, which is not told of the answer (`request.Asked`)."""

    model: VideoModel
    memory: MemoryPolicy
    refiner: Refiner
    states: dict[str, StreamState]
    store: KVStore
    layout: Layout
    held: Callable[[], Sequence[Reading]]

    def note_answer(self, answer: Answer) -> None:
        pass


@dataclass(frozen=True)
class _Look:
    """One look of a rule: the frame it is about, and the probe in flight if the policy needs one."""

    frame: Frame
    moment: Moment
    probe: Probe | None


@dataclass
class _Standing:
    """One rule on one stream: what its policy remembers, the look in flight, and what there was to count."""

    rule: Rule
    state: StreamState
    look: _Look | None = None
    surest: tuple[Frame, float] | None = None
    looked_s: float | None = None
    looks: int = 0
    skipped: int = 0
    alerts: int = 0
    probability: float | None = None
    highest: float | None = None
    mass: float | None = None

    @property
    def asks(self) -> bool:
        """Whether its policy wants the model's probability."""
        return "speak_probability" in self.rule.policy.needs


@dataclass(frozen=True)
class RuleStatus:
    """How a rule is doing on its stream."""

    name: str
    looks: int
    skipped: int
    """Looks that were due and not taken: the one before was still in flight, or there was no room for it."""
    alerts: int
    probability: float | None
    """Of yes, at the newest look; None before the first."""
    highest: float | None
    """Highest probability so far."""
    mass: float | None
    """Least share of all words that yes and no had together: small means that the prompt is no yes-or-no question."""


class Watch:
    """The rules of one session, made by `Session.watch`. Feed it every frame that the session took in.

    With an engine stepped by hand, `due` gives probes to hand to any step (also those of other streams, in one batch),
    and `take` turns the finished ones into alerts. `look` does both at once for a single stream.

    Raises `InputError` when two rules have one name, and `ModelError` when the model cannot tell a probability.
    """

    def __init__(self, engine: "Engine", session: "Session", rules: Sequence[Rule] = ()) -> None:
        self._engine, self.session = engine, session
        self._words: YesNo | None = None
        self._standing: dict[str, _Standing] = {}
        for rule in rules:
            self.add(rule)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order they were added."""
        return tuple(one.rule for one in self._standing.values())

    def add(self, rule: Rule) -> None:
        """A further rule, from the next frame on. Raises as the constructor does."""
        if not isinstance(rule, Rule):
            raise InputError("a watch takes rules", given=type(rule).__name__, do="Rule(name, prompt), or read_rules")
        check_names([*self.rules, rule])
        if "speak_probability" in rule.policy.needs and self._words is None:
            model = self.session.model
            if isinstance(model, ClipModel):
                raise ModelError(
                    "rules need the probability of a word, which a model without an adapter cannot tell",
                    given=model.name,
                    do="choose a model with an adapter (see: onlooker methods)",
                )
            self._words = YesNo.of(model)
        self._standing[rule.name] = _Standing(rule, rule.policy.new_state())

    def remove(self, name: str) -> None:
        """Drop a rule. Raises `InputError` when there is none of that name."""
        if name not in self._standing:
            known = ", ".join(self._standing) or "there are no rules"
            raise InputError("there is no rule of that name", given=name, do=known)
        gone = self._standing.pop(name)
        if gone.look and gone.look.probe:
            gone.look.probe.cancel()

    def status(self) -> list[RuleStatus]:
        """How every rule is doing."""
        return [
            RuleStatus(name, one.looks, one.skipped, one.alerts, one.probability, one.highest, one.mass)
            for name, one in self._standing.items()
        ]

    def due(self, frame: Frame, taken: FrameTaken) -> list[Probe]:
        """The looks that are due at the frame the session has just taken in; none while the last is in flight.

        A look that there is no room for is skipped and told to the session as `Failed`; the others are not affected.
        Where nothing is given out with a frame, only a probe can tell anything: other policies look when something is.
        """
        moment = Moment(taken.time_s, taken.tokens_kept / max(1, taken.tokens_seen), taken.recomputed_ratio)
        standing = [one for one in self._standing.values() if taken.tokens_seen or one.asks]
        return [probe for one in standing if (probe := self._start(one, frame, moment))]

    def take(self) -> list[Alert]:
        """Alerts of the looks that have ended since the last call; each is also an event of the session."""
        alerts = [alert for one in self._standing.values() if (alert := self._end(one))]
        for alert in alerts:
            self.session.tell(dataclasses.replace(alert, evidence=None))
        return alerts

    def look(self, frame: Frame, taken: FrameTaken) -> list[Alert]:
        """Take the looks that are due at this frame, all in one batch, and return the alerts."""
        probes = self.due(frame, taken)
        while pending := [probe for probe in probes if not probe.done]:
            self._engine.step_requests(pending)
        return self.take()

    def _start(self, one: _Standing, frame: Frame, moment: Moment) -> Probe | None:
        # Half a millisecond of grace: times of frames are rounded, and one in two looks would be missed.
        if one.looked_s is not None and moment.time_s - one.looked_s < one.rule.every_s - 5e-4:
            return None
        if one.look is not None:
            one.skipped += 1
            return None
        probe = None
        if one.asks:
            assert self._words is not None
            try:
                probe = Probe(self.session, one.rule.prompt, self._words)
            except CapacityError as full:
                one.skipped += 1
                self.session.tell(Failed(moment.time_s, full))
                return None
        one.looked_s, one.look = moment.time_s, _Look(frame, moment, probe)
        return probe

    def _end(self, one: _Standing) -> Alert | None:
        look = one.look
        if look is None or (look.probe and not look.probe.done):
            return None
        one.look, moment, evidence = None, look.moment, look.frame
        if look.probe:
            if look.probe.probability is None or look.probe.mass is None:  # cancelled by whoever stepped it
                one.skipped += 1
                return None
            likely, mass = look.probe.probability, look.probe.mass
            one.probability, one.highest = likely, max(likely, one.highest or 0.0)
            one.mass = mass if one.mass is None else min(mass, one.mass)
            moment = dataclasses.replace(moment, speak_probability=likely)
            # The first of those that are equally sure: a memory says yes for a while after the thing has gone.
            if one.surest is None or likely < 0.5 or likely > one.surest[1] + 0.02:
                one.surest = (look.frame, likely)
            evidence = one.surest[0]
        one.looks += 1
        if not one.rule.policy.should_speak(moment, one.state):
            return None
        one.alerts += 1
        name, prompt = one.rule.name, one.rule.prompt
        return Alert(name, prompt, moment.time_s, moment.speak_probability, evidence.time_s, evidence)
