"""A rule: what to look for, and when to say so."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from onlooker.core import registry
from onlooker.core.checks import number, words
from onlooker.core.contracts import ResponsePolicy
from onlooker.core.errors import InputError
from onlooker.respond.threshold import Threshold

EXAMPLE = "star: tell me when a red star appears.; threshold=0.7,hold_s=2,cooldown_s=10"
LONGEST_PROMPT = 2000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SETTINGS = re.compile(r"\s*\w+\s*=[^;=]*(,\s*\w+\s*=[^;=,]*)*")


@dataclass(frozen=True)
class Rule:
    """A standing question to a stream, and the policy that decides when its yes is worth an alert.

    Raises `InputError` for a name that is not one word, a prompt without words, or an interval out of range.
    """

    name: str
    """One word (letters, digits, `_`, `-`), by which alerts are told apart."""
    prompt: str
    """A question or request that the model answers with yes or no."""
    policy: ResponsePolicy = field(default_factory=Threshold)
    """When to speak."""
    every_s: float = 1.0
    """Least seconds of the stream between two looks."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError("a rule needs a name of one word", given=ascii(self.name)[:80], do=f"write {EXAMPLE!r}")
        if len(words(f"the prompt of rule {self.name}", self.prompt, do="ask yes or no")) > LONGEST_PROMPT:
            given = f"{len(self.prompt)} characters"
            raise InputError(
                f"the prompt of rule {self.name} has 1 to {LONGEST_PROMPT} characters", given=given, do="ask yes or no"
            )
        number("every_s", self.every_s, least=0.0, unit="seconds", do="use 1")
        if not isinstance(self.policy, ResponsePolicy):
            given = type(self.policy).__name__
            raise InputError("the policy of a rule is a response method", given=given, do="policy=Threshold(0.7)")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """A rule written as `NAME: PROMPT; key=value,...`; the settings may be left out.

        Settings are `every_s`, those of `Threshold`, or `policy=` another response method and its settings.
        """
        name, colon, rest = text.partition(":")
        if not colon:
            raise InputError("a rule is NAME: PROMPT; settings", given=repr(text[:120]), do=f"write {EXAMPLE!r}")
        prompt, semicolon, tail = rest.rpartition(";")
        if not semicolon or not _SETTINGS.fullmatch(tail):  # no settings: a semicolon belongs to the prompt
            prompt, tail = rest, ""
        settings: dict[str, Any] = {}
        for part in filter(None, tail.split(",")):
            key, _, value = (word.strip() for word in part.partition("="))
            if key in settings:
                raise InputError(f"a setting of rule {name.strip()} is given twice", given=key, do="give it once")
            settings[key] = value
        return cls.from_dict({"name": name.strip(), "prompt": prompt.strip()} | settings)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """A rule from its fields side by side: `name`, `prompt`, `every_s`, `policy` and its settings.

        Unknown fields raise `InputError`, and so does a policy in a file: a rule is data that may come from anywhere,
        and runs no code. (In Python, pass `Rule` the policy itself.)
        """
        values = dict(given)
        name, prompt = values.pop("name", None), values.pop("prompt", None)
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise InputError("a rule needs a name and a prompt", given=_short(given), do='{"name": ..., "prompt": ...}')
        every = _seconds(values.pop("every_s", 1.0), name)
        method = str(values.pop("policy", "threshold"))
        if method.endswith(".py"):
            raise InputError("a rule names a built-in policy", given=method, do=", ".join(registry.names("response")))
        policy = registry.build(
            registry.method_class("response", method),
            f"rule {name}",
            {key: str(value) for key, value in values.items()},
        )
        return cls(name, prompt, policy, every)

    def as_dict(self) -> dict[str, Any]:
        """The rule's fields side by side, from which `from_dict` makes it again."""
        head = {"name": self.name, "prompt": self.prompt, "every_s": self.every_s}
        settings = {one.name: getattr(self.policy, one.name) for one in registry.settings(type(self.policy))}
        method = registry.describe(self.policy).partition(":")[0]
        return head | ({} if method == "threshold" else {"policy": method}) | settings


def read_rules(path: str | Path) -> list[Rule]:
    """The rules of a JSON file: a list of objects. Raises `InputError` when it holds anything else."""
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        given = f"{path}: {error}"
        raise InputError("the rules cannot be read", given=given, do="give a JSON file with a list of rules") from error
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        do = '[{"name": "star", "prompt": "tell me when a red star appears."}]'
        raise InputError("a rules file holds a list of objects", given=_short(listed), do=do)
    if not listed:
        raise InputError("there is no rule in the file", given=str(path), do="write one, or leave the file out")
    return check_names([Rule.from_dict(one) for one in listed])


def check_names(rules: Sequence[Rule]) -> list[Rule]:
    """The same rules. Raises `InputError` when two have one name."""
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError("two rules have one name", given=", ".join(twice), do="give every rule its own")
    return list(rules)


def _seconds(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"every_s of rule {name} is a number of seconds", given=_short(value), do="use 1") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
