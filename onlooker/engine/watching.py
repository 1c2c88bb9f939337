"""Rules over streams: what is asked at every frame for their policies, and what comes of their decisions."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from onlooker.core.contracts import FRAME_SIGNALS, ClipModel, Moment
from onlooker.core.errors import CapacityError, InputError, ModelError
from onlooker.core.events import Alert, Failed, FrameTaken, Then, Verdict
from onlooker.core.frame import Frame
from onlooker.engine.hearing import Wanted, to_decide, with_heard
from onlooker.engine.probing import Aside, Probe, Reply, Retelling, YesNo
from onlooker.engine.standing import Looking, Speaking, Standing
from onlooker.respond import Rule, check_names

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

PROBED = frozenset({"speak_probability", "said_perplexity"})
"""Signals that are asked for beside the stream."""
OF_TOKENS = FRAME_SIGNALS | {"decision"}
"""Signals that a frame tells, if any of its tokens came."""


@dataclass(frozen=True)
class RuleStatus:
    """How a rule is doing on its stream."""

    name: str
    looks: int
    skipped: int
    """Looks that were due and not taken: the one before was still in flight, or there was no room for it."""
    alerts: int
    """How often it spoke: alerts, answers, notes, and what was handed on."""
    withheld: int
    """Replies that were not told: empty, the rule's veto, the same as the one before, or due while one was on its
    way."""
    probability: float | None
    """Of yes, at the newest look; None before the first."""
    highest: float | None
    """Highest probability so far."""
    mass: float | None
    """Least share of all words that yes and no had together: small means that the prompt is no yes-or-no question."""
    score: float | None
    """What its policy decides by, at the newest look."""
    threshold: float | None
    """Where that counts."""
    said: str
    """What it said last."""
    said_s: float | None
    """Stream time at which it spoke last."""


class Watch:
    """The rules of one session, made by `Session.watch`. Feed it every frame that the session took in.

    With an engine stepped by hand, `due` gives looks to hand to any step (also those of other streams, in one batch),
    `take` turns the finished ones into alerts, and `begun` gives the replies that have to be stepped then. `look` does
    it all at once for a single stream.

    Raises `InputError` when two rules have one name, and `ModelError` when the model cannot tell a signal.
    """

    def __init__(self, engine: "Engine", session: "Session", rules: Sequence[Rule] = ()) -> None:
        self._engine, self.session = engine, session
        self._words: YesNo | None = None
        self._standing: dict[str, Standing] = {}
        self._requests: dict[str, Wanted] = {}
        self._begun: list[Aside] = []
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
        needs, model = rule.policy.needs, self.session.model
        if isinstance(model, ClipModel):
            if needs:
                raise ModelError(
                    "rules need the probability of a word, which a model without an adapter cannot tell",
                    given=f"{model.name}, {', '.join(sorted(needs))}",
                    do="choose a model with an adapter (see: onlooker methods)",
                )
        else:
            rule.policy.check(model)
        if needs & FRAME_SIGNALS and self.session.memory.holds_tokens:
            raise ModelError(
                "a signal of a frame needs a memory that reads while watching",
                given=f"{', '.join(sorted(needs & FRAME_SIGNALS))}, {type(self.session.memory).__name__}",
                do="choose another memory, or another policy",
            )
        if "speak_probability" in needs and self._words is None:
            self._words = YesNo.of(model)
        deciding = None
        if "decision" in needs and not isinstance(model, ClipModel):
            deciding = to_decide(model, rule.prompt)
        one = self.session.rules.open(rule, None if deciding is None else deciding.decider.new_state())
        self._standing[rule.name] = one
        if deciding is not None:
            self._requests[rule.name] = deciding
        self.session.wanted.update(needs)

    def remove(self, name: str) -> None:
        """Drop a rule. Raises `InputError` when there is none of that name."""
        if name not in self._standing:
            known = ", ".join(self._standing) or "there are no rules"
            raise InputError("there is no rule of that name", given=name, do=known)
        gone = self._standing.pop(name)
        self._requests.pop(name, None)
        self.session.rules.end(gone)
        self.session.wanted -= Counter(gone.needs)
        for aside in [*(gone.look.asides if gone.look else ()), *([gone.speaking.reply] if gone.speaking else ())]:
            aside.cancel()

    def status(self) -> list[RuleStatus]:
        """How every rule is doing."""
        return [_status(one) for one in self._standing.values()]

    def looks(self, name: str) -> list[Verdict]:
        """The newest 600 looks of a rule, oldest first. Raises `InputError` when there is none of that name."""
        if name not in self._standing:
            raise InputError("there is no rule of that name", given=name, do=", ".join(self._standing) or "add one")
        return list(self._standing[name].strip)

    def due(self, frame: Frame, taken: FrameTaken) -> list[Aside]:
        """The looks that are due at the frame the session has just taken in; none while the last is in flight.

        A look that there is no room for is skipped and told to the session as `Failed`; the others are not affected.
        Where nothing is given out with a frame, only what is asked beside the stream tells anything: other policies
        look when something is.
        """
        moment = Moment(taken.time_s, taken.tokens_kept / max(1, taken.tokens_seen), taken.recomputed_ratio)
        heard = with_heard(moment, self.session.heard, self.session.model)
        decided = self._decided(taken.time_s) if taken.tokens_seen else {}
        asides: list[Aside] = []
        for name, one in self._standing.items():
            if not taken.tokens_seen and (not one.needs & PROBED or one.needs & OF_TOKENS):
                continue
            asides += self._start(one, frame, dataclasses.replace(heard, decision=decided.get(name)))
        return asides

    def take(self) -> list[Alert]:
        """Alerts of the looks and replies that have ended since the last call; each is also an event of the session.
        Notes are written."""
        ended = [alert for one in self._standing.values() for alert in (self._end_reply(one), self._end(one)) if alert]
        for alert in ended:
            self.session.tell(dataclasses.replace(alert, evidence=None))
        return ended

    def begun(self) -> list[Aside]:
        """Replies that `take` has begun since the last call, to be handed to steps until they are done."""
        begun, self._begun = self._begun, []
        return begun

    def look(self, frame: Frame, taken: FrameTaken) -> list[Alert]:
        """Take the looks that are due at this frame, all in one batch, let those speak that want to, and return the
        alerts."""
        self._finish(self.due(frame, taken))
        alerts = self.take()
        while replies := self.begun():
            self._finish(replies)
            alerts += self.take()
        return alerts

    def _finish(self, asides: Sequence[Aside]) -> None:
        while pending := [one for one in asides if not one.done]:
            self._engine.step_requests(pending)

    # ------------------------------------------------------------------------------------------------------- inside

    def _decided(self, time_s: float) -> dict[str, float]:
        """What the model's decision net says of this frame, by rule: of all rules in one go. Waits for the device."""
        carriers = self.session.carriers
        if not self._requests or carriers is None:
            return {}
        asked = {name: (self._standing[name], wanted) for name, wanted in self._requests.items()}
        decider = next(iter(self._requests.values())).decider
        said = [one.speaking.moment.time_s if one.speaking else one.said_s for one, _ in asked.values()]
        since = [None if at is None else time_s - at for at in said]
        states = [one.deciding for one, _ in asked.values() if one.deciding is not None]
        likely = decider.decide(carriers, torch.stack([wanted.words for _, wanted in asked.values()]), since, states)
        return dict(zip(asked, likely.tolist(), strict=True))

    def _start(self, one: Standing, frame: Frame, moment: Moment) -> list[Aside]:
        # Half a millisecond of grace: times of frames are rounded, and one in two looks would be missed.
        if one.looked_s is not None and moment.time_s - one.looked_s < one.rule.every_s - 5e-4:
            return []
        if one.look is not None:
            one.skipped += 1
            return []
        probe = retelling = None
        try:
            if "speak_probability" in one.needs:
                assert self._words is not None
                probe = Probe(self.session, one.rule.prompt, self._words)
            if "said_perplexity" in one.needs and one.said_ids and one.speaking is None:
                retelling = Retelling(self.session, one.rule.prompt, one.said_ids)
        except CapacityError as full:
            if probe is not None:
                probe.cancel()
            one.skipped += 1
            self.session.tell(Failed(moment.time_s, full))
            return []
        moment = dataclasses.replace(moment, said_s=one.said_s)
        one.looked_s, one.look = moment.time_s, Looking(frame, moment, probe, retelling)
        return list(one.look.asides)

    def _end(self, one: Standing) -> Alert | None:
        look = one.look
        if look is None or not all(aside.done for aside in look.asides):
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
        if look.retelling:
            if look.retelling.perplexity is None:
                one.skipped += 1
                return None
            moment = dataclasses.replace(moment, said_perplexity=look.retelling.perplexity)
        decision = one.rule.policy.decide(moment, one.state)
        one.note_look(moment.time_s, decision)
        if decision.outcome == "silent":
            return None
        then = "delegate" if decision.outcome == "delegate" else one.rule.then
        if then in ("alert", "delegate"):
            one.alerts, one.said_s = one.alerts + 1, moment.time_s
            return _alert(one.rule, moment, evidence, then)
        self._speak(one, moment, evidence)
        return None

    def _speak(self, one: Standing, moment: Moment, evidence: Frame) -> None:
        if one.speaking is not None:  # it is saying something already
            one.withheld += 1
            return
        try:
            # Nobody waits for a note.
            reply = Reply(self.session, one.rule.prompt, one.rule.longest, priority=int(one.rule.then == "note"))
        except CapacityError as full:
            one.skipped += 1
            self.session.tell(Failed(moment.time_s, full))
            return
        one.speaking = Speaking(reply, moment, evidence)
        self._begun.append(reply)

    def _end_reply(self, one: Standing) -> Alert | None:
        speaking, rule = one.speaking, one.rule
        if speaking is None or not speaking.reply.done:
            return None
        one.speaking, moment, reply = None, speaking.moment, speaking.reply
        if not reply.finished:
            one.skipped += 1
            return None
        text, one.said_s = reply.text, moment.time_s
        if not text or text == one.said or (rule.veto and text.lower().startswith(rule.veto.lower())):
            one.withheld += 1
            return None
        one.said, one.said_ids, one.alerts = text, reply.said, one.alerts + 1
        if rule.then == "answer":
            return _alert(rule, moment, speaking.evidence, "answer", text)
        try:
            self._engine.note(self.session, text, None, "caption")
        except CapacityError as full:
            self.session.tell(Failed(moment.time_s, full))
        return None


def _alert(rule: Rule, moment: Moment, evidence: Frame, then: Then, text: str | None = None) -> Alert:
    likely = moment.speak_probability
    return Alert(rule.name, rule.prompt, moment.time_s, likely, evidence.time_s, evidence, then, text)


def _status(one: Standing) -> RuleStatus:
    score, threshold = (one.strip[-1].score, one.strip[-1].threshold) if one.strip else (None, None)
    counts = (one.looks, one.skipped, one.alerts, one.withheld, one.probability, one.highest, one.mass)
    return RuleStatus(one.rule.name, *counts, score, threshold, one.said, one.said_s)
