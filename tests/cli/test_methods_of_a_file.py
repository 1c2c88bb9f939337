"""`onlooker methods my_file.py`: what a file of one's own holds, and what is wrong with it."""

import pytest

METHOD = '''"""Keep what I say."""

from dataclasses import dataclass
from onlooker.compress import Scorer

@dataclass(frozen=True)
class Mine(Scorer):
    sharpness: float = 2.5
    """How sharply."""

    def new_state(self):
        ...

    def scores(self, features, batch, states, pruned):
        ...
'''


def test_the_settings_of_a_file_are_shown(run, tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(METHOD, encoding="utf-8")
    shown = run("methods", file)
    assert shown.code == 0 and "(compressor): Keep what I say." in shown.out
    assert "sharpness" in shown.out and "How sharply." in shown.out and "keep_ratio" in shown.out
    (row,) = run("methods", file, "--json").json
    assert (row["kind"], row["class"]) == ("compressor", "Mine")
    assert [one["name"] for one in row["settings"]] == ["keep", "keep_ratio", "sharpness"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "there is no method in the file"),
        ("raise RuntimeError('no')\n", "a method file cannot be run"),
        (METHOD.replace("@dataclass(frozen=True)\n", ""), "a method must be a frozen dataclass"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(run, tmp_path, text, said) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text, encoding="utf-8")
    told = run("methods", file)
    assert told.code == 2 and said in told.err and len(told.err.strip().splitlines()) == 1
    assert "there is no such method file" in run("methods", tmp_path / "none.py").err
