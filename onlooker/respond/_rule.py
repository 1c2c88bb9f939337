"""A rule: what to look for, and when to say so."""

import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from onlooker.core import registry
from onlooker.core.checks import number, whole, words
from onlooker.core.contracts import ResponsePolicy
from onlooker.core.errors import InputError
from onlooker.core.events import Then
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
    then: Then = "alert"
    """What comes of it when the policy speaks: alert, answer, note or delegate."""
    longest: int = 32
    """Most tokens of an answer or a note."""
    veto: str = ""
    """How the model begins a reply when there is nothing to say, as the prompt has agreed with it: it is not told."""

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
        if self.then not in typing.get_args(Then):
            do = f"one of: {', '.join(typing.get_args(Then))}"
            raise InputError(f"rule {self.name} cannot do that", given=f"then={self.then!r}"[:80], do=do)
        whole("longest", self.longest, least=1, most=1024, do="32 tokens are a long sentence")
        if not isinstance(self.veto, str):
            raise InputError("veto is a text", given=repr(self.veto)[:80], do="for example NO REPLY")
        if "said_perplexity" in self.policy.needs and self.then not in ("answer", "note"):
            raise InputError(
                f"the policy of rule {self.name} looks at what the rule said, and this one says nothing",
                given=f"then={self.then}",
                do="then=answer, or then=note",
            )

    @classmethod
    def from_text(cls, text: str, policy: ResponsePolicy | None = None) -> Self:
        """A rule written as `NAME: PROMPT; key=value,...`; the settings may be left out. `policy` is that of a rule
        that names none.

        Settings are `every_s`, `then`, `longest`, `veto`, and those of `Threshold`, or `policy=` another response
        method and its settings.
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
        return cls.from_dict({"name": name.strip(), "prompt": prompt.strip()} | settings, policy)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], policy: ResponsePolicy | None = None) -> Self:
        """A rule from its fields side by side: `name`, `prompt`, `every_s`, `then`, `longest`, `veto`, `policy` and
        its settings.

        Unknown fields raise `InputError`, and so does a policy in a file: a rule is data that may come from anywhere,
        and runs no code. (In Python, pass `Rule` the policy itself.)
        """
        values = dict(given)
        name, prompt = values.pop("name", None), values.pop("prompt", None)
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise InputError("a rule needs a name and a prompt", given=_short(given), do='{"name": ..., "prompt": ...}')
        every = _number(values.pop("every_s", 1.0), float, f"every_s of rule {name} is a number of seconds")
        longest = _number(values.pop("longest", 32), int, f"longest of rule {name} is a number of tokens")
        then, veto = values.pop("then", "alert"), values.pop("veto", "")
        if policy is not None and "policy" not in values:
            settings = {one.name: getattr(policy, one.name) for one in registry.settings(type(policy))}
            values = {key: value for key, value in settings.items() if value is not None} | values
        usual = type(policy) if policy is not None and "policy" not in values else None
        method = str(values.pop("policy", "threshold"))
        if method.endswith(".py"):
            raise InputError("a rule names a built-in policy", given=method, do=", ".join(registry.names("response")))
        settings = {key: _as_text(value) for key, value in values.items()}
        made = registry.build(usual or registry.method_class("response", method), f"rule {name}", settings)
        return cls(name, prompt, made, every, then, longest, veto)

    def as_dict(self, usual: ResponsePolicy | None = None) -> dict[str, Any]:
        """The rule's fields side by side, from which `from_dict` makes it again.

        `usual` is the policy of rules that name none, the same there: one in a file cannot be named by a rule.
        """
        head: dict[str, Any] = {"name": self.name, "prompt": self.prompt, "every_s": self.every_s}
        if self.then != "alert":
            head |= {"then": self.then, "longest": self.longest} | ({"veto": self.veto} if self.veto else {})
        settings = {one.name: getattr(self.policy, one.name) for one in registry.settings(type(self.policy))}
        unnamed = "threshold" if usual is None else _name_of(usual)
        return head | ({} if self.method == unnamed else {"policy": self.method}) | settings

    @property
    def method(self) -> str:
        """The name of its policy, or the path of its file."""
        return _name_of(self.policy)


def _name_of(policy: ResponsePolicy) -> str:
    return registry.describe(policy).partition(":")[0]


def read_rules(path: str | Path, policy: ResponsePolicy | None = None) -> list[Rule]:
    """The rules of a JSON file: a list of objects; `policy` is that of those that name none. Raises `InputError` when
    it holds anything else."""
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
    return check_names([Rule.from_dict(one, policy) for one in listed])


def check_names(rules: Sequence[Rule]) -> list[Rule]:
    """The same rules. Raises `InputError` when two have one name."""
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError("two rules have one name", given=", ".join(twice), do="give every rule its own")
    return list(rules)


def _number(value: Any, kind: type, what: str) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(what, given=_short(value), do="use 1") from None


def _as_text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
