"""Methods are found by file name, made from text, and described by text; mistakes are answered with advice."""

import dataclasses
import enum
import random
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from onlooker.core import registry
from onlooker.core.errors import InputError


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Settings:
    whole: int = 1
    """A whole number."""
    real: float = 0.5
    """A real number.

    With a second paragraph.
    """
    flag: bool = False
    """Yes or no."""
    maybe: int | None = None
    """Perhaps a number."""
    either: int | float = 1
    """A number of either kind."""
    word: Literal["near", "far"] = "near"
    """One of two words."""
    level: Literal[1, 2, 4] = 1
    """One of three numbers."""
    many: tuple[int, ...] = ()
    """Numbers."""
    two: tuple[int, str] = (1, "a")
    """A number and a word."""
    layers: tuple[float, ...] | None = None
    """Perhaps numbers."""
    mode: Mode = Mode.FAST
    """A mode."""
    fresh: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))
    """Numbers from a factory."""
    bare: str = "text"


def build(**texts: str) -> Settings:
    return registry.build(Settings, "settings", texts)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("whole", "3", 3),
        ("whole", "-3", -3),
        ("real", "0.25", 0.25),
        ("real", "1e-3", 0.001),
        ("flag", "true", True),
        ("flag", "Off", False),
        ("maybe", "none", None),
        ("maybe", "None", None),
        ("maybe", "4", 4),
        ("either", "2", 2),
        ("either", "2.5", 2.5),
        ("word", "far", "far"),
        ("level", "2", 2),
        ("many", "1+2+3", (1, 2, 3)),
        ("many", "", ()),
        ("two", "5+b", (5, "b")),
        ("layers", "none", None),
        ("layers", "0.5+1", (0.5, 1.0)),
        ("mode", "exact", Mode.EXACT),
        ("bare", "anything goes", "anything goes"),
    ],
)
def test_texts_become_values(key: str, text: str, value: object) -> None:
    found = getattr(build(**{key: text}), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("whole", "2.5"),
        ("whole", ""),
        ("real", "much"),
        ("real", "nan"),
        ("flag", "perhaps"),
        ("maybe", "nothing"),
        ("either", "x"),
        ("word", "fat"),
        ("level", "3"),
        ("many", "1+x"),
        ("two", "1"),
        ("two", "1+a+b"),
        ("mode", "slow"),
    ],
)
def test_wrong_values_are_refused_with_advice(key: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        build(**{key: text})
    assert f"settings:{key}" in caught.value.what and caught.value.given is not None and caught.value.do


def test_a_near_miss_is_answered_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean far"):
        build(word="farr")
    with pytest.raises(InputError, match="did you mean whole"):
        build(whol="3")
    with pytest.raises(InputError, match="did you mean stc_pruner"):
        registry.make("compressor", "stc_prunner")
    with pytest.raises(InputError, match="did you mean keep"):
        registry.make("compressor", "stc_pruner:kep=60")


@pytest.mark.parametrize(
    "chosen",
    [
        "nonsense",
        "stc_pruner:keep",
        "stc_pruner:keep=1,keep=2",
        "stc_pruner:keep=many",
        "stc_pruner:keep=0",
        "identity:keep=3",
        "_keep",
        "",
        42,
        None,
        "no/such/file.py",
        "no/such/file.py:keep=3",
    ],
)
def test_a_wrong_choice_is_refused_with_advice(chosen: object) -> None:
    with pytest.raises(InputError) as caught:
        registry.make("compressor", chosen)
    assert caught.value.do


def test_a_method_is_made_from_text_or_is_one() -> None:
    method = registry.make("compressor", "stc_pruner: keep=60, score=gaussian")
    assert (method.keep, method.score) == (60, "gaussian")
    assert registry.make("compressor", method) is method
    assert registry.describe(method) == "stc_pruner:keep=60,score=gaussian"
    assert registry.make("compressor", registry.describe(method)) == method
    assert registry.describe(registry.make("compressor", "identity")) == "identity"


def test_a_class_or_a_method_of_another_kind_is_no_method() -> None:
    with pytest.raises(InputError, match="make an instance"):
        registry.make("compressor", registry.method_class("compressor", "identity"))
    with pytest.raises(InputError, match="must be a name or a EncoderAccelerator"):
        registry.make("encoder", registry.make("compressor", "identity"))


def test_kinds_and_names() -> None:
    names = registry.names("compressor")
    assert names == sorted(names) and not any(name.startswith("_") for name in names)
    with pytest.raises(InputError, match="compressor"):
        registry.names("compresor")
    assert registry.class_named("compressor", "STCPruner") is registry.method_class("compressor", "stc_pruner")
    assert registry.class_named("compressor", "Nothing") is None


def test_settings_carry_their_help() -> None:
    rows = {row.name: row for row in registry.settings(Settings)}
    assert rows["real"].help == "A real number." and rows["bare"].help == ""
    assert rows["maybe"].type == "int | None" and rows["word"].type == "Literal['near', 'far']"
    assert rows["many"].type == "tuple[int, ...]" and rows["fresh"].default == (1, 2)


def test_inherited_settings_keep_their_help() -> None:
    @dataclass(frozen=True)
    class More(Settings):
        extra: int = 0
        """One more."""

    rows = {row.name: row.help for row in registry.settings(More)}
    assert rows["whole"] == "A whole number." and rows["extra"] == "One more."


def test_every_kind_of_value_survives_its_description() -> None:
    odd = Settings(2, 1e20, True, 0, 2.5, "far", 4, (1,), (7, "b"), (1e30, -0.5), Mode.EXACT, (), "x")
    text = registry.describe(odd).partition(":")[2]
    assert registry.build(Settings, "settings", dict(part.split("=") for part in text.split(","))) == odd
    assert ":" not in registry.describe(Settings())


# ------------------------------------------------------------------------------------------------- files of a user

GOOD = '''
"""Keep the first tokens."""
from __future__ import annotations
from dataclasses import dataclass
import torch
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState

@dataclass(frozen=True)
class First(Compressor):
    keep: int = 3
    """Tokens to keep."""

    def new_state(self):
        return StreamState()

    def compress(self, tokens, state):
        return tokens.select(torch.arange(min(self.keep, len(tokens))))

class _Helper(First):
    pass

Alias = First
'''


def write(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return str(path)


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = write(tmp_path / "my_method.py", GOOD)
    method = registry.make("compressor", f"{path}:keep=5")
    assert method.keep == 5 and registry.caption(type(method)) == "Keep the first tokens."
    assert registry.make("compressor", registry.describe(method)) == method
    assert registry.make("compressor", Path(path)) == type(method)()
    assert registry.settings(type(method))[0].help == "Tokens to keep."


def test_a_file_may_be_called_like_anything(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    one = registry.make("compressor", write(tmp_path / "a:b" / "random.py", GOOD))
    other = registry.make("compressor", write(tmp_path / "random.py", GOOD.replace("= 3", "= 4")) + ":keep=9")
    assert (one.keep, other.keep) == (3, 9) and type(one) is not type(other)
    import random as again

    assert again is random and hasattr(again, "randint")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    assert registry.make("compressor", write(path, GOOD)).keep == 3
    write(path, GOOD.replace("= 3", "= 8"))
    stamp = path.stat().st_mtime_ns + 1_000_000_000
    import os

    os.utime(path, ns=(stamp, stamp))
    assert registry.make("compressor", str(path)).keep == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""Nothing here."""', "defines none"),
        (GOOD + "\n@dataclass(frozen=True)\nclass Second(First):\n    pass\n", "defines First, Second"),
        (GOOD.replace("@dataclass(frozen=True)\nclass First", "class First"), "frozen dataclass"),
        (GOOD.replace("frozen=True", "frozen=False"), "frozen dataclass"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_package_anywhere", "no_such_package_anywhere"),
    ],
)
def test_a_wrong_file_is_refused_with_advice(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        registry.make("compressor", write(tmp_path / "wrong.py", text))
    assert caught.value.do


def test_a_file_without_a_docstring_has_an_empty_caption(tmp_path: Path) -> None:
    method = registry.make(
        "compressor", write(tmp_path / "silent.py", GOOD.replace('"""Keep the first tokens."""', ""))
    )
    assert registry.caption(type(method)) == ""


def test_a_setting_without_a_default_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "needy.py", GOOD.replace("keep: int = 3", "keep: int"))
    with pytest.raises(InputError, match="keep="):
        registry.make("compressor", path)
    assert registry.make("compressor", f"{path}:keep=2").keep == 2
