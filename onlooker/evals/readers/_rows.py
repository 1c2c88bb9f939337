"""Rows of an annotation file to items: what cannot be used is noted with its reason and never dropped in silence."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError, OnlookerError
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, VideoRecord
from onlooker.evals.item import Item, Reading, Rejected

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
SHORT_S = 2.0
"""A file that ends this much before a question is too short for it. Containers round, and annotators do too."""


class Bad(ValueError):
    """A row that cannot be asked; the message is the reason."""


def load(path: Path) -> Any:
    """What a JSON, JSON lines or CSV file holds. Raises `InputError` when it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(text.splitlines()))
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            "the annotations cannot be read", given=f"{path}: {error}", do="download them again"
        ) from error


def seconds(text: Any) -> float:
    """Seconds of "hh:mm:ss", "mm:ss" or a number; everything after the last colon may have a fraction."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        value = float(text)
    else:
        parts = str(text).strip().strip("[]").split(":")
        if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"\d+(\.\d+)?", part.strip()) for part in parts):
            raise Bad(f"no time: {text!r}")
        value = 0.0
        for part in parts:
            value = 60 * value + float(part)
    if not 0 <= value < 1e7:
        raise Bad(f"a time out of range: {text!r}")
    return value


_LABEL = re.compile(r"^\s*(?:\(([A-H])\)|([A-H])[.):])\s*")


@dataclass(frozen=True)
class Options:
    """The options of one question, without their letters, and which of them is right."""

    texts: tuple[str, ...]
    gold: int

    @property
    def answer(self) -> str:
        """The words of the right one."""
        return self.texts[self.gold]

    @property
    def meta(self) -> dict[str, Any]:
        """What a lettered question carries along."""
        return {"lettered": True, "gold": self.gold}

    @property
    def oddity(self) -> str:
        """What is odd about them, though they can be asked; empty when nothing is."""
        if len(set(self.texts)) < len(self.texts):
            return "two options are the same"
        return "" if all(self.texts) else "an option has no words"


def by_letter(options: Any, answer: Any) -> Options:
    """Options and the letter of the right one.

    Where options carry letters of their own ("A. red", "(A) red", "A) red"), the answer names one of those: the one at
    its own place if that has it, else the only one that has it. A piece without a letter among others with letters is
    the rest of the option before it.
    """
    given = _texts(options)
    labels = [_label(option) for option in given]
    if sum(map(bool, labels)) >= 2 and not all(labels) and labels[0]:
        given = _joined(given, labels)
        labels = [_label(option) for option in given]
    texts = tuple(
        (_LABEL.sub("", option) if label else option).strip() for option, label in zip(given, labels, strict=True)
    )
    letter = answer.strip().strip("().") if isinstance(answer, str) else ""
    place = ord(letter) - 65 if len(letter) == 1 else -1
    named = [number for number, label in enumerate(labels) if label == letter]
    if len(named) == 1:
        place = named[0]
    elif all(labels) and len(set(labels)) == len(labels):
        place = -1  # every option has a letter of its own, and none has this one
    if not 0 <= place < len(texts):
        raise Bad(f"the answer {answer!r} is none of {len(texts)} options")
    return Options(_checked(texts), place)


def by_text(options: Any, answer: Any) -> Options:
    """Options and the words of the right one."""
    texts = _without_letters(options)
    if str(answer).strip() not in texts:
        raise Bad(f"the answer {answer!r} is not among the options")
    return Options(_checked(texts), texts.index(str(answer).strip()))


def by_number(options: Any, answer: Any) -> Options:
    """Options and the number of the right one, from 0; a number may be written as text."""
    texts = _without_letters(options)
    try:
        place = -1 if isinstance(answer, bool) else int(answer)
    except (TypeError, ValueError):
        place = -1
    if not 0 <= place < len(texts):
        raise Bad(f"the answer {answer!r} is none of {len(texts)} options")
    return Options(_checked(texts), place)


def by_any(options: Any, answer: Any) -> Options:
    """Options and the right one by its words, its letter or its number, whichever fits, in this order."""
    text = str(answer).strip()
    if text in _without_letters(options):
        return by_text(options, text)
    return by_number(options, text) if text.isdigit() else by_letter(options, text)


def _texts(options: Any) -> list[str]:
    if not isinstance(options, list | tuple) or len(options) < 2 or not all(isinstance(o, str) for o in options):
        raise Bad(f"no list of 2 or more options: {options!r}")
    return list(options)


def _without_letters(options: Any) -> tuple[str, ...]:
    """Texts without the letter of their place; another letter is part of the text."""
    texts = _texts(options)
    return tuple(
        (_LABEL.sub("", text) if _label(text) == chr(65 + place) else text).strip() for place, text in enumerate(texts)
    )


def _checked(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) == 1:
        raise Bad(f"options that say nothing apart: {texts!r}")
    return texts


def _label(option: str) -> str:
    found = _LABEL.match(option)
    return (found[1] or found[2]) if found else ""


def _joined(options: list[str], labels: list[str]) -> list[str]:
    whole: list[str] = []
    for option, label in zip(options, labels, strict=True):
        if label:
            whole.append(option)
        else:
            whole[-1] += f", {option.strip()}"
    return whole


def lines(options: tuple[str, ...], mark: str = "{}. ") -> str:
    """Options with letters, one on each line."""
    return "\n".join(mark.format(chr(65 + place)) + option for place, option in enumerate(options))


def duration_of(path: Path) -> float | None:
    """Seconds of a video file, None where its container does not say. Raises `SourceError` when it is no video."""
    from onlooker.video import open_video

    with open_video(path) as source:
        return source.info.duration_s


class QuestionRows:
    """Collects questions by video. Use `with rows.row(where)` around each row: what it raises becomes a rejection."""

    def __init__(self, videos: Path, benchmark: str, probe: Callable[[Path], float | None] = duration_of) -> None:
        self.folder, self.benchmark, self.probe = videos, benchmark, probe
        self.rejected: list[Rejected] = []
        self._files: dict[str, tuple[Path, float | None]] = {}
        self._sought: dict[tuple[str, ...], str] = {}
        """What names led to: the key of a file, or why there is none (then it is no key)."""
        self._queries: dict[str, list[QueryRecord]] = {}
        self._sides: dict[str, tuple[dict[str, Any], ...]] = {}
        self._ids: set[str] = set()

    @contextmanager
    def row(self, where: str, questions: int = 1) -> Iterator[None]:
        """One row; a bad one is noted and the next one goes on."""
        try:
            yield
        except Bad as bad:
            self.reject(where, str(bad), questions)
        except KeyError as missing:
            self.reject(where, f"no field {missing}", questions)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            self.reject(where, f"{type(error).__name__}: {error}", questions)

    def reject(self, where: str, reason: str, questions: int = 1) -> None:
        """Note a row that cannot be asked."""
        self.rejected.append(Rejected(where, reason, questions))

    def video(self, *names: str, side: tuple[dict[str, Any], ...] = ()) -> str:
        """The key of the first of these files that is there (relative to the folder, with any video suffix).

        One file has one key, by whatever names it was found. Raises `Bad` when there is none, or when it cannot be
        opened.
        """
        if names not in self._sought:
            self._sought[names] = self._locate(names)
        key = self._sought[names]
        if key not in self._files:
            raise Bad(key)
        self._sides.setdefault(key, side)
        return key

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return any(path.is_file() for path in self._places(name))

    def duration(self, video: str) -> float | None:
        """Seconds of a video that was found."""
        return self._files[video][1]

    def add(self, query: QueryRecord) -> None:
        """Take a question; what is odd about its options is told, and costs nothing.

        Raises `Bad` when its id was there before, or its video ends before it is asked.
        """
        if query.id in self._ids:
            raise Bad(f"the id {query.id} was there before")
        length = self.duration(query.video)
        latest = max([query.ask_time, *(float(point["t"]) for point in query.test_points)])
        if length is not None and length + SHORT_S < latest:
            raise Bad(f"the file is short: it ends at {length:.1f} s, the question comes at {latest:.1f} s")
        if not query.question.strip():
            raise Bad("a question without words")
        self._ids.add(query.id)
        self._queries.setdefault(query.video, []).append(query)
        if query.options and (oddity := Options(query.options, 0).oddity):
            self.reject(query.id, f"{oddity}: asked nevertheless", 0)

    def reading(self) -> Reading:
        """Everything, in the order of the videos' first questions."""
        items = []
        for key, queries in self._queries.items():
            path, length = self._files[key]
            last_s = max(query.ask_time for query in queries)
            record = VideoRecord(key, str(path), length or last_s, 0.0, self.benchmark, side=self._sides.get(key, ()))
            ordered = tuple(sorted(queries, key=lambda query: query.ask_time))
            items.append(Item(record, ordered, lambda fps, path=path: _frames(path, fps)))
        return Reading(tuple(items), tuple(self.rejected))

    def _places(self, name: str) -> list[Path]:
        base = self.folder / name.removeprefix("./")
        return [base, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)] if name else []

    def _locate(self, names: tuple[str, ...]) -> str:
        for path in (path for name in names for path in self._places(name)):
            if path.is_file():
                key = path.relative_to(self.folder).as_posix()
                if key not in self._files:
                    try:
                        self._files[key] = path, self.probe(path)
                    except OnlookerError as error:
                        return f"the video cannot be opened: {error.what} ({path.name})"
                return key
        return f"the video is missing: {names[0]}"


def _frames(path: Path, fps: float) -> Iterator[Frame]:
    from onlooker.video import Ahead, open_video

    # Decoded while the model is at work: many videos share its steps, which would wait for all their decoders.
    with open_video(path, fps=fps) as source, Ahead(iter(source)) as frames:
        yield from frames
