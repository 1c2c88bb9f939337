"""The examples of docs/adding_a_method.md, taken out of the page, keep every promise as files of a user's own."""

import re
from pathlib import Path

import pytest
import torch
from contract_suite import check, exceptions, points

from onlooker.core import kinds, registry

torch.set_num_threads(1)

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
KINDS = {
    "half.py": "codec",
    "fewest_looks.py": "schedule",
    "busy_packets.py": "gate",
    "changed_most.py": "compressor",
    "newest_blocks.py": "memory",
    "every_tenth.py": "memory",
    "looked_at.py": "refiner",
    "after_changes.py": "think",
    "when_much_changed.py": "response",
    "repeat_still.py": "encoder",
}


def test_the_page_has_one_example_of_each_kind() -> None:
    assert EXAMPLES.keys() == KINDS.keys() and set(KINDS.values()) == set(kinds.KINDS)
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(EXAMPLES)
    assert all(len(text.splitlines()) < 120 for text in EXAMPLES.values()), "a fresh method of any kind is short"


@pytest.mark.parametrize("file", KINDS)
def test_a_documented_method_keeps_its_promises(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(EXAMPLES[file], encoding="utf-8")
    method = registry.make(KINDS[file], str(path))
    for name in points(KINDS[file]):
        if name not in exceptions(KINDS[file], method):
            check(KINDS[file], name, method)


def test_every_point_named_on_the_page_exists() -> None:
    named = re.findall(
        r"^\| (`.*?) \|",
        PAGE.read_text(encoding="utf-8").split("What the contract tests ask")[1].split("\n## ")[0],
        re.M,
    )
    known = {name for kind in kinds.KINDS for name in points(kind)}
    assert {name.strip("` ") for row in named for name in row.split(",")} <= known
