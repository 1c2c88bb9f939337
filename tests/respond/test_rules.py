"""Rules as text, as fields, and in files."""

import json
from pathlib import Path

import pytest

from onlooker.core.errors import InputError
from onlooker.respond import Rule, Threshold, check_names, read_rules


def test_a_rule_reads_as_it_is_written() -> None:
    rule = Rule.from_text(" star : tell me when a red star appears.; threshold=0.8, hold_s=3,cooldown_s=20,every_s=2")
    assert rule == Rule("star", "tell me when a red star appears.", Threshold(0.8, None, 3, 20), 2.0)
    assert Rule.from_text("door:is the door open?") == Rule("door", "is the door open?")


def test_a_prompt_may_hold_colons_and_semicolons() -> None:
    assert Rule.from_text("a: one: two; three").prompt == "one: two; three"
    rule = Rule.from_text("a: one; two; hold_s=0")
    assert (rule.prompt, rule.policy) == ("one; two", Threshold(hold_s=0))


def test_fields_round_trip() -> None:
    for rule in (Rule("a", "b?"), Rule("a", "b?", Threshold(0.9, 0.2, 0, 5), 4.0)):
        fields = rule.as_dict()
        assert Rule.from_dict(json.loads(json.dumps(fields))) == rule
    assert Rule("a", "b?").as_dict() == {
        "name": "a", "prompt": "b?", "every_s": 1.0,
        "threshold": 0.7, "clear": None, "hold_s": 2.0, "cooldown_s": 10.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("star", "NAME: PROMPT"),
        (": tell me", "a name of one word"),
        ("two words: tell me", "a name of one word"),
        ("../up: tell me", "a name of one word"),
        ("star: ", "needs words"),
        (f"star: {'x' * 2001}", "1 to 2000 characters"),
        ("star: x; treshold=0.5", "no such setting.*did you mean threshold"),
        ("star: x; threshold=high", "must be of type float"),
        ("star: x; threshold=2", "threshold lies in"),
        ("star: x; hold_s=1,hold_s=2", "given twice"),
        ("star: x; every_s=-1", "every_s is a number of seconds"),
        ("star: x; every_s=soon", "a number of seconds; given: .soon"),
        ("star: x; policy=my_own.py", "names a built-in policy"),
        ("star: x; policy=treshold", "did you mean threshold"),
    ],
)
def test_a_bad_rule_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Rule.from_text(text)


@pytest.mark.parametrize("fields", [{}, {"name": 3, "prompt": "x"}, {"name": "a"}, {"name": "a", "prompt": ["x"]}])
def test_fields_of_the_wrong_kind_are_refused(fields: dict) -> None:
    with pytest.raises(InputError, match="a name and a prompt"):
        Rule.from_dict(fields)


def test_rules_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text('[{"name": "a", "prompt": "x", "hold_s": 0}, {"name": "b", "prompt": "y", "every_s": 5}]')
    assert read_rules(file) == [Rule("a", "x", Threshold(hold_s=0)), Rule("b", "y", every_s=5.0)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "cannot be read"),
        ('{"name": "a"}', "a list of objects"),
        ("[1]", "a list of objects"),
        ('[{"name": "a", "prompt": "x", "treshold": 1}]', "no such setting"),
        ('[{"name": "a", "prompt": "x"}, {"name": "a", "prompt": "y"}]', "two rules have one name"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "rules.json"
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        read_rules(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json"):
        read_rules(tmp_path / "nothing.json")


def test_names_are_checked_together() -> None:
    with pytest.raises(InputError, match="two rules have one name; given: a"):
        check_names([Rule("a", "x"), Rule("b", "x"), Rule("a", "y")])
