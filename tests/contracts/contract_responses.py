"""The promises of response policies."""

import dataclasses
import itertools
import json
import math
import typing
from typing import Any

from contract_base import Opener, Stream, only_needed
from contract_streams import (
    flat_moment,
    moment,
)

from onlooker.core import registry
from onlooker.core.contracts import Decision, Moment, Outcome
from onlooker.respond import Rule


class ResponseStream(Stream):
    """Moments of a quiet stream with bursts."""

    num_long = 300
    said_s: float | None = None

    def input(self, number: int) -> Moment:
        return only_needed(moment(self.seed, number), self.method.needs)

    def push_input(self, given: Moment) -> Decision:
        decision = self.method.decide(dataclasses.replace(given, said_s=self.said_s), self.state)
        if decision.speaks:
            self.said_s = given.time_s
        return decision


def decides(method: Any, opened: Opener) -> None:
    """A decision is silent, speak or delegate, with a finite score, on quiet and odd streams too."""
    stream = opened(method)
    for number in range(60):
        _check_decision(stream.push(number))
    for level in (0.0, 1.0):
        state = method.new_state()
        for number in range(10):
            given = flat_moment(number * 0.5, level)
            _check_decision(method.decide(only_needed(given, method.needs), state))
            nothing = Moment(number * 0.5 + 0.25, level, None)
            _check_decision(method.decide(nothing, state))


def _check_decision(decision: Decision) -> None:
    assert type(decision) is Decision and decision.outcome in typing.get_args(Outcome), f"no decision: {decision!r}"
    for value in (decision.score, decision.threshold):
        assert value is None or (type(value) is float and math.isfinite(value)), f"no number to draw: {decision!r}"


def response_engagement(method: Any, opened: Opener) -> None:
    """On a stream with quiet and busy times it speaks, but not all the time."""
    stream = opened(method)
    assert len({stream.push(number).speaks for number in range(stream.num_long)}) == 2


def quiet_times_are_kept(method: Any, opened: Opener) -> None:
    """A policy with a quiet time keeps it, however loud the stream is."""
    if "quiet_s" not in {f.name for f in dataclasses.fields(method)}:
        return
    stream = opened(dataclasses.replace(method, quiet_s=7.0))
    times = [number * 0.5 for number in range(stream.num_long) if stream.push(number).outcome != "silent"]
    assert all(after - before >= 7.0 for before, after in itertools.pairwise(times)), f"too soon: {times}"


def a_rule_is_written_with_it(method: Any, opened: Opener) -> None:
    """A rule with this policy is read again from its fields: no setting has the name of one of the rule's own."""
    own = {f.name for f in dataclasses.fields(Rule)}
    assert not (same := own & {f.name for f in dataclasses.fields(method)}), f"a rule has {', '.join(same)} itself"
    if registry.describe(method).partition(":")[0] in registry.names("response"):
        rule = Rule("a", "b?", method, then="answer")
        assert Rule.from_dict(json.loads(json.dumps(rule.as_dict()))) == rule


RESPONSE = (decides, response_engagement, quiet_times_are_kept, a_rule_is_written_with_it)
