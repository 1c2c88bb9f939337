"""Alert rules of a stream: put, removed and told of, on the worker's thread."""

from typing import Any

from onlooker.core import registry
from onlooker.core.contracts import ResponsePolicy
from onlooker.respond import Rule
from onlooker.server.bodies import RuleBody
from onlooker.server.refusals import Refusal
from onlooker.server.stream import Stream

STRIP = 120
"""Looks of a rule that are told with it, newest last."""


def rule_of(name: str, body: RuleBody, usual: ResponsePolicy | None = None) -> Rule:
    """The rule that a body describes; `usual` is the policy of one that names none. Raises `Refusal` (422) for a field
    that neither a rule nor its policy has, and `InputError` for a value that is none."""
    policy = (body.policy or (registry.describe(usual) if usual else "threshold")).partition(":")[0]
    if policy in registry.names("response"):
        known = {setting.name for setting in registry.settings(registry.method_class("response", policy))}
        if unknown := sorted((body.model_extra or {}).keys() - known):
            do = f"settings of {policy} are {', '.join(sorted(known))}"
            raise Refusal(422, "unknown_field", f"{unknown[0]}: neither a rule nor its policy has it; {do}")
    return Rule.from_dict({"name": name} | body.model_dump(exclude_none=True), usual)


def told(rule: Rule, usual: ResponsePolicy | None = None) -> dict[str, Any]:
    """A rule as a client sees it: with the name of its policy, unless that is the one that all servers have."""
    is_plain = rule.method == "threshold" and (usual is None or registry.describe(usual).startswith("threshold"))
    return rule.as_dict(usual) | ({} if is_plain else {"policy": rule.method})


def put_rule(stream: Stream, rule: Rule, most: int) -> None:
    """Add a rule, or replace the one of its name. Raises `Refusal` (422) when the stream has as many as may be."""
    assert stream.session is not None, "a stream is open before anyone gives it rules"
    stream.watch = stream.watch or stream.session.watch()
    others = [one.name for one in stream.watch.rules if one.name != rule.name]
    if len(others) >= most:
        raise Refusal(422, "too_many_rules", f"a session has at most {most} rules")
    if len(others) < len(stream.watch.rules):
        stream.watch.remove(rule.name)
    stream.watch.add(rule)


def remove_rule(stream: Stream, name: str) -> None:
    """Remove a rule. Raises `Refusal` (404) if there is none of this name."""
    if stream.watch is None or name not in [rule.name for rule in stream.watch.rules]:
        raise Refusal(404, "rule_not_found", f"there is no rule {name!r}")
    stream.watch.remove(name)


def describe_rules(stream: Stream, usual: ResponsePolicy | None = None) -> list[dict[str, Any]]:
    """The rules, with the newest probability of each; `usual` is the policy of those that name none."""
    if stream.watch is None:
        return []
    told_of = {status.name: status for status in stream.watch.status()}
    return [
        told(rule, usual)
        | {"looks": told_of[rule.name].looks, "alerts": told_of[rule.name].alerts}
        | {"probability": told_of[rule.name].probability, "highest": told_of[rule.name].highest}
        | {"score": told_of[rule.name].score, "counts_from": told_of[rule.name].threshold}
        | {"said": told_of[rule.name].said, "said_s": told_of[rule.name].said_s}
        | {"scores": [[look.time_s, look.score, look.threshold] for look in stream.watch.looks(rule.name)[-STRIP:]]}
        for rule in stream.watch.rules
    ]
