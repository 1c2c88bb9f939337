"""What a rule on a stream remembers, and what it said when: owned by the session, saved and forked with it."""

import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from onlooker.core.checks import number
from onlooker.core.contracts import Decision, Moment
from onlooker.core.errors import InputError
from onlooker.core.events import Verdict
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine.probing import Probe, Reply, Retelling
from onlooker.respond import Rule

LOOKS_KEPT = 600
_FACTS = {"rule", "said", "said_ids", "said_s", "state"}


@dataclass(frozen=True)
class Looking:
    """One look of a rule that is not over: the frame it is about, and what is asked beside the stream."""

    frame: Frame
    moment: Moment
    probe: Probe | None = None
    retelling: Retelling | None = None

    @property
    def asides(self) -> list[Probe | Retelling]:
        """What has to be stepped."""
        return [one for one in (self.probe, self.retelling) if one is not None]


@dataclass(frozen=True)
class Speaking:
    """A reply on its way: what it is about."""

    reply: Reply
    moment: Moment
    evidence: Frame


@dataclass(eq=False)
class Standing:
    """One rule on one stream: what its policy remembers, the look in flight, and what there was to count."""

    rule: Rule
    state: StreamState
    said: str = ""
    """What it said last."""
    said_ids: tuple[int, ...] = ()
    said_s: float | None = None
    """When."""
    look: Looking | None = None
    speaking: Speaking | None = None
    deciding: StreamState | None = None
    """What the model's decision net remembers for this rule."""
    surest: tuple[Frame, float] | None = None
    looked_s: float | None = None
    looks: int = 0
    skipped: int = 0
    alerts: int = 0
    withheld: int = 0
    probability: float | None = None
    highest: float | None = None
    mass: float | None = None
    strip: deque[Verdict] = field(default_factory=lambda: deque(maxlen=LOOKS_KEPT))

    @property
    def needs(self) -> frozenset[str]:
        """Signals that its policy wants."""
        return self.rule.policy.needs

    def note_look(self, time_s: float, decision: Decision) -> None:
        """Keep what was decided, for the strip of scores."""
        self.looks += 1
        self.strip.append(Verdict(time_s, decision.outcome, decision.score, decision.threshold))

    def remembered(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What goes on after a save: not the counts."""
        tensors, state = self.state.export()
        facts = {"rule": repr(self.rule), "said": self.said, "said_ids": list(self.said_ids), "said_s": self.said_s}
        facts["state"] = state
        if self.deciding is not None:
            held, facts["deciding"] = self.deciding.export()
            tensors = tensors | {f"deciding/{name}": tensor for name, tensor in held.items()}
        return tensors, facts


@dataclass(frozen=True)
class _Kept:
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class RuleBook:
    """What the rules of one session remember, by name, also those that are yet to be given again after a load."""

    def __init__(self) -> None:
        self._live: weakref.WeakSet[Standing] = weakref.WeakSet()
        self._kept: dict[str, _Kept] = {}

    def open(self, rule: Rule, deciding: StreamState | None = None) -> Standing:
        """A rule begins; one that was saved, with the same prompt, policy and settings, goes on. `deciding` is what a
        decision net remembers at its beginning. Raises `InputError` when what was saved is damaged."""
        one = Standing(rule, rule.policy.new_state(), deciding=deciding)
        kept = self._kept.pop(rule.name, None)
        if kept is not None and kept.facts["rule"] == repr(rule):
            one.state.load(dict(kept.tensors), kept.facts["state"])
            one.said, one.said_ids = kept.facts["said"], tuple(kept.facts["said_ids"])
            one.said_s = kept.facts["said_s"]
            if deciding is not None and "deciding" in kept.facts:
                held = {n.removeprefix("deciding/"): t for n, t in kept.tensors.items() if n.startswith("deciding/")}
                deciding.load(held, kept.facts["deciding"])
        self._live.add(one)
        return one

    def end(self, one: Standing) -> None:
        """A rule is gone."""
        self._live.discard(one)

    def fork(self) -> "RuleBook":
        """A book in which everything waits for its rules to be given."""
        twin = RuleBook()
        twin.load(*self.export())
        return twin

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and facts."""
        tensors = {f"{name}/{place}": t for name, kept in self._kept.items() for place, t in kept.tensors.items()}
        facts: dict[str, Any] = {name: dict(kept.facts) for name, kept in self._kept.items()}
        for one in self._live:
            held, facts[one.rule.name] = one.remembered()
            tensors |= {f"{one.rule.name}/{place}": tensor.clone() for place, tensor in held.items()}
        return tensors, facts

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep what `export` gave until the rules come again. Raises `InputError` for anything else."""
        for name, fact in facts.items():
            if not isinstance(fact, Mapping) or set(fact) - {"deciding"} != _FACTS:
                raise InputError("what a rule remembered is damaged", given=repr(fact)[:200], do="take a new snapshot")
            if fact["said_s"] is not None:
                number("said_s of a rule", fact["said_s"], least=0.0)
            if not isinstance(fact["said"], str) or not all(isinstance(token, int) for token in fact["said_ids"]):
                raise InputError("what a rule said is damaged", given=repr(fact)[:200], do="take a new snapshot")
            held = {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}
            self._kept[name] = _Kept(held, fact)
