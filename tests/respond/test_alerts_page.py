"""docs/alerts.md is true: its Python runs, its rules are read, its verification accepts and refuses."""

import json
import re
from pathlib import Path

import pytest

from onlooker.respond import Rule, Threshold
from onlooker.server.webhooks import Delivery, sign

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_example_prints_its_alert(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PYTHON[0], {})
    assert capsys.readouterr().out == "9 s: heart (100%)\n"


def test_its_rules_are_read() -> None:
    texts = re.findall(r'--rule "(.+?)"', PAGE)
    rules = [Rule.from_text(text) for text in texts]
    assert [rule.name for rule in rules] == ["heart", "parcel", "open"] and rules[2].every_s == 5
    (listed,) = [json.loads(block) for block in re.findall(r"```json\n(\[.*?)```", PAGE, flags=re.DOTALL)]
    assert Rule.from_dict(listed[0]).policy == Threshold(0.8, hold_s=5)


def test_its_defaults_are_the_defaults() -> None:
    rule = Rule("a", "b").as_dict()
    table = dict(re.findall(r"\| `(\w+)` \| ([\d.]+) \|", PAGE))
    assert {name: float(value) for name, value in table.items()} == {name: rule[name] for name in table}
    assert len(table) == 4 and Threshold(0.8).clear_below == pytest.approx(0.6)
    assert (Delivery().attempts, Delivery().longest_wait_s, Delivery().waiting) == (6, 60.0, 256)


def test_its_verification_accepts_what_is_genuine_only() -> None:
    names: dict = {}
    exec(PYTHON[1], names)
    import time

    secret, body = b"a secret of enough characters", b'{"x": 1}'
    now = str(int(time.time()))
    headers = {"webhook-id": "m", "webhook-timestamp": now, "webhook-signature": sign(secret, "m", now, body)}
    assert names["is_genuine"](headers, body, secret)
    assert not names["is_genuine"](headers, body + b" ", secret)
    assert not names["is_genuine"](headers, body, b"another secret of that length")
    old = headers | {"webhook-timestamp": "1600000000", "webhook-signature": sign(secret, "m", "1600000000", body)}
    assert not names["is_genuine"](old, body, secret)
