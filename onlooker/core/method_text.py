"""Methods as text: `name:key=value,key=value`, one inside another, several in a row.

    stc_pruner:keep=60                a name and its settings
    windowed(flashvid:tau=0.2):frames=8   another method in brackets, made first
    dtd:tau=0.2+stc_pruner:keep=60    a chain: each gets what the one before let through
    layers=0+1+2                      inside a value, + separates the members of a tuple

A `+` begins another method where a word follows that is the name of one, that a `:` or `(` follows, or that would be
the first word among numbers; everywhere else it belongs to the value.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onlooker.core.errors import InputError

_NAME = re.compile(r"\s*([^\s,():+]+)\s*")
_WORD = re.compile(r"\s*([A-Za-z_]\w*)\s*")
_FILE = re.compile(r"[^,()]*?\.py(?=$|[:+()])")
_NO_NAMES = ("none", "inf", "nan", "true", "false")
"""Words that stand for values."""


@dataclass(frozen=True)
class MethodText:
    """One method as it was written."""

    name: str
    """Of a method, or the path of a Python file."""
    inner: tuple["MethodText", ...] = ()
    """The method in brackets, several of a chain; empty without brackets."""
    settings: Mapping[str, str] = field(default_factory=dict)


def read_methods(text: str, is_method: Callable[[str], bool]) -> tuple[MethodText, ...]:
    """The methods of a text, in their order: one, or the links of a chain. `is_method` knows the names of all.

    Raises `InputError` for text that is not of this form.
    """
    reader = _Reader(text, is_method)
    links = reader.chain()
    if reader.at < len(text):
        raise reader.fault("a bracket is closed that was not opened", "leave out the )")
    return links


class _Reader:
    """A place in the text, and what may follow it."""

    def __init__(self, text: str, is_method: Callable[[str], bool]) -> None:
        self.text, self.is_method, self.at = text, is_method, 0

    def fault(self, what: str, do: str) -> InputError:
        return InputError(what, given=self.text, do=do)

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def chain(self) -> tuple[MethodText, ...]:
        links = [self.link()]
        while self.next() == "+":
            self.at += 1
            links.append(self.link())
        return tuple(links)

    def link(self) -> MethodText:
        name = self.name()
        inner: tuple[MethodText, ...] = ()
        if self.next() == "(":
            self.at += 1
            inner = self.chain()
            if self.next() != ")":
                raise self.fault(f"a bracket of {name} is not closed", f"write {name}(METHOD):key=value")
            self.at += 1
        if self.next() not in (":", "+", ")", ""):
            raise self.fault(f"something follows {name} that is no setting", f"write {name}:key=value")
        return MethodText(name, inner, self.settings(name) if self.next() == ":" else {})

    def name(self) -> str:
        # A path may hold a colon or a plus of its own: it ends at ".py".
        file = _FILE.match(self.text, self.at)
        word = _NAME.match(self.text, self.at)
        if file and (Path(file[0]).is_file() or not word or word.end() >= file.end()):
            self.at = file.end()
            return file[0]
        if not word:
            before = self.text[: self.at].rstrip()
            where = {"+": "after +", "(": "between the brackets"}.get(before[-1:], "at the beginning")
            raise self.fault(f"a method is missing {where}", "write its name, such as stc_pruner")
        self.at = word.end()
        return word[1]

    def settings(self, name: str) -> dict[str, str]:
        values: dict[str, str] = {}
        while self.next() in (":", ","):
            self.at += 1
            begin = self.at
            while self.next() not in (",", ")", "") and not self.begins_a_method(begin):
                self.at += 1
            part = self.text[begin : self.at].strip()
            if not part:
                continue
            key, equals, value = (word.strip() for word in part.partition("="))
            if not equals:
                raise NoSetting(name, part)
            if key in values:
                raise InputError(f"a setting of {name} is given twice", given=key, do="give it once")
            values[key] = value
        return values

    def begins_a_method(self, value: int) -> bool:
        """Whether another method begins at a `+` here, in the setting that begins at `value`."""
        if self.next() != "+":
            return False
        word = _WORD.match(self.text, self.at + 1)
        file = _FILE.match(self.text, self.at + 1)
        if file or not word or word[1] in _NO_NAMES:
            return file is not None
        members = self.text[value : self.at].partition("=")[2]
        behind = self.text[word.end() : word.end() + 1]
        return self.is_method(word[1]) or behind in (":", "(") or members[-1:].isdigit()


class NoSetting(InputError):
    """A part of a text that should be `key=value`; who knows the method may add an example."""

    def __init__(self, name: str, part: str, example: str = "") -> None:
        self.name, self.part = name, part
        do = f"for example {example}" if example else f"write {name}:key=value"
        super().__init__(f"settings of {name} are key=value", given=part, do=do)
