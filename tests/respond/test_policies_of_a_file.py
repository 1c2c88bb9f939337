"""A policy in a file may be the usual one of rules; a rule that comes from anywhere may not name a file."""

import pytest

from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.respond import Rule

POLICY = '''"""Speak at every look."""

from dataclasses import dataclass
from onlooker.core.contracts import SPEAK, ResponsePolicy
from onlooker.core.state import StreamState

@dataclass(frozen=True)
class Always(ResponsePolicy):
    loudness: float = 1.0

    def new_state(self):
        return StreamState()

    def decide(self, moment, state):
        return SPEAK
'''


def test_it_is_the_policy_of_rules_that_name_none(tmp_path) -> None:
    file = tmp_path / "always.py"
    file.write_text(POLICY, encoding="utf-8")
    usual = registry.make("response", f"{file}:loudness=3")
    assert Rule.from_text("what: what is there?", usual).policy == usual
    louder = Rule.from_dict({"name": "what", "prompt": "what?", "loudness": 5}, usual)
    assert type(louder.policy) is type(usual) and louder.policy.loudness == 5  # pyright: ignore
    other = Rule.from_text("what: what is there?; policy=clock,period_s=2", usual)
    assert type(other.policy).__name__ == "Clock"
    with pytest.raises(InputError, match="built-in policy"):
        Rule.from_dict({"name": "what", "prompt": "what?", "policy": str(file)}, usual)
