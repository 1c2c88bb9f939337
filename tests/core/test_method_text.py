"""Methods as text: one inside another, several in a row, and what is not of this form."""

from pathlib import Path

import pytest

from onlooker.compress import Chain, STCPruner, Uniform
from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.method_text import MethodText, read_methods

OUTER = '''"""Another compressor, every so many frames."""
from dataclasses import dataclass
from onlooker.compress import Identity
from onlooker.core.contracts import Compressor

@dataclass(frozen=True)
class Outer(Compressor):
    inner: Compressor = Identity()
    """The compressor that works."""
    every: int = 2
    """Frames between two."""
    at: tuple[int, ...] = ()
    """Numbers."""
    words: tuple[str, ...] = ()
    """Words."""

    def new_state(self):
        return self.inner.new_state()

    def compress(self, tokens, state):
        return self.inner.compress(tokens, state)
'''


@pytest.fixture
def outer(tmp_path: Path) -> str:
    path = tmp_path / "a+b" / "outer.py"
    path.parent.mkdir()
    path.write_text(OUTER, encoding="utf-8")
    return str(path)


def read(text: str) -> tuple[MethodText, ...]:
    return read_methods(text, {"dtd", "prune", "window"}.__contains__)


def test_a_name_with_settings() -> None:
    assert read("prune") == (MethodText("prune"),)
    assert read(" prune : keep = 3 , share=none,") == (MethodText("prune", (), {"keep": "3", "share": "none"}),)
    assert read("stc-prune")[0].name == "stc-prune"  # whoever knows the names says that there is none of this one


def test_one_inside_another() -> None:
    inner = MethodText("dtd", (), {"tau": "0.2", "at": "1+2"})
    assert read("window(dtd:tau=0.2,at=1+2):frames=8") == (MethodText("window", (inner,), {"frames": "8"}),)
    deep = read("window(window(dtd:tau=1)+prune:keep=3):frames=8+prune")
    assert [one.name for one in deep] == ["window", "prune"] and deep[0].settings == {"frames": "8"}
    assert [one.name for one in deep[0].inner] == ["window", "prune"] and deep[0].inner[1].settings == {"keep": "3"}


@pytest.mark.parametrize(
    ("text", "names", "last"),
    [
        ("dtd+prune", ["dtd", "prune"], {}),
        ("dtd+prun", ["dtd", "prun"], {}),
        ("dtd:tau=0.2+prune:keep=60", ["dtd", "prune"], {"keep": "60"}),
        ("dtd:tau=0.2+prune", ["dtd", "prune"], {}),
        ("dtd:tau=0.2+prun", ["dtd", "prun"], {}),
        ("dtd:words=far+prun:keep=3", ["dtd", "prun"], {"keep": "3"}),
        ("dtd:tau=0.2+my.py:keep=3", ["dtd", "my.py"], {"keep": "3"}),
        ("dtd:at=0+1+2", ["dtd"], {"at": "0+1+2"}),
        ("dtd:words=far+near,tau=1", ["dtd"], {"words": "far+near", "tau": "1"}),
        ("dtd:at=1+none+inf", ["dtd"], {"at": "1+none+inf"}),
        ("dtd:at=0+1+prune:at=2+3", ["dtd", "prune"], {"at": "2+3"}),
    ],
)
def test_a_plus_begins_a_method_or_another_member(text: str, names: list[str], last: dict[str, str]) -> None:
    links = read(text)
    assert [one.name for one in links] == names and links[-1].settings == last


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a method is missing at the beginning; given: ; try: write its name, such as stc_pruner"),
        ("dtd+", "a method is missing after +; given: dtd+; try: write its name, such as stc_pruner"),
        ("+dtd", "a method is missing at the beginning; given: +dtd; try: write its name, such as stc_pruner"),
        ("dtd++prune", "a method is missing after +; given: dtd++prune; try: write its name, such as stc_pruner"),
        ("window()", "a method is missing between the brackets; given: window(); "
                     "try: write its name, such as stc_pruner"),
        ("window(dtd", "a bracket of window is not closed; given: window(dtd; try: write window(METHOD):key=value"),
        ("window(dtd:a=1,b=2", "a bracket of window is not closed; given: window(dtd:a=1,b=2; "
                               "try: write window(METHOD):key=value"),
        ("dtd)", "a bracket is closed that was not opened; given: dtd); try: leave out the )"),
        ("dtd:tau=1)", "a bracket is closed that was not opened; given: dtd:tau=1); try: leave out the )"),
        ("window(dtd)frames=8", "something follows window that is no setting; given: window(dtd)frames=8; "
                                "try: write window:key=value"),
        ("dtd,tau=1", "something follows dtd that is no setting; given: dtd,tau=1; try: write dtd:key=value"),
        ("dtd:tau", "settings of dtd are key=value; given: tau; try: write dtd:key=value"),
        ("dtd:tau=1,tau=2", "a setting of dtd is given twice; given: tau; try: give it once"),
    ],
)  # fmt: skip
def test_malformed_text_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(text)
    assert str(error.value) == message


def test_methods_are_made_and_described(outer: str) -> None:
    made = registry.make("compressor", f"{outer}(uniform:keep=3):every=4,at=1+2")
    assert (made.inner, made.every, made.at) == (Uniform(keep=3), 4, (1, 2))
    assert registry.describe(made) == f"{outer}(uniform:keep=3):every=4,at=1+2"
    assert registry.make("compressor", registry.describe(made)) == made
    assert registry.describe(registry.make("compressor", outer)) == outer
    assert [one.name for one in registry.settings(type(made))] == ["inner", "every", "at", "words"]


def test_chains_are_made_and_described(outer: str) -> None:
    made = registry.make("compressor", "uniform:keep=9+stc_pruner:keep=3")
    assert made == Chain((Uniform(keep=9), STCPruner(keep=3)))
    assert registry.describe(made) == "uniform:keep=9+stc_pruner:keep=3"
    nested = registry.make("compressor", f"{outer}(uniform:keep=9+stc_pruner:keep=3):every=4+uniform")
    assert nested.links[0].inner == made and registry.make("compressor", registry.describe(nested)) == nested


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("compressor", "stc_pruner+dycoke",
         "dycoke needs whole frames and can only be the first of a chain; given: stc_pruner+dycoke; "
         "try: put it first, or leave it out"),
        ("memory", "rekv+full",
         "methods of the kind memory cannot be chained; given: rekv+full; "
         "try: name one of them (chains are for: compressor)"),
        ("compressor", "uniform(stc_pruner)",
         "uniform takes no method in brackets; given: stc_pruner; "
         "try: leave out the brackets; settings are uniform:key=value"),
        ("compressor", "OUTER:inner=uniform",
         "inner is a method of its own; given: inner=uniform; try: write OUTER(uniform):key=value"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_together_is_refused(kind: str, text: str, message: str, outer: str) -> None:
    with pytest.raises(InputError) as error:
        registry.make(kind, text.replace("OUTER", outer))
    assert str(error.value) == message.replace("OUTER", outer)


def test_an_unknown_link_is_named_with_advice() -> None:
    with pytest.raises(
        InputError, match="there is no compressor of that name; given: stc_prunr; try: did you mean stc"
    ):
        registry.make("compressor", "uniform:keep_ratio=0.2+stc_prunr")
    with pytest.raises(InputError, match="settings of stc_pruner are key=value; given: keep; try: for example stc_pr"):
        registry.make("compressor", "uniform+stc_pruner:keep")
