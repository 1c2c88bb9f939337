"""Rows of an annotation file to items: what cannot be used is noted with its reason and never dropped in silence."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def plain_options(options: Any, least: int = 2) -> tuple[str, ...]:
    """Option texts without their letters ("A. red", "(A) red", "A) red" and "red" are the same)."""
    if not isinstance(options, list | tuple) or len(options) < least or not all(isinstance(o, str) for o in options):
        raise Bad(f"no list of {least} or more options: {options!r}")
    texts = []
    for place, option in enumerate(options):
        mark = chr(65 + place)
        texts.append(re.sub(rf"^\s*(?:\({mark}\)|{mark}[.):])\s*", "", option).strip())
    if len(set(texts)) < len(texts):
        raise Bad("two options are the same")
    return tuple(texts)


def by_letter(options: tuple[str, ...], answer: Any) -> str:
    """The text of the option that a letter names."""
    place = ord(answer.strip()) - 65 if isinstance(answer, str) and len(answer.strip()) == 1 else -1
    if not 0 <= place < len(options):
        raise Bad(f"the answer {answer!r} is none of {len(options)} options")
    return options[place]


def by_text(options: tuple[str, ...], answer: Any) -> str:
    """The option that is the answer, word for word."""
    found = [option for option in options if option == str(answer).strip()]
    if not found:
        raise Bad(f"the answer {answer!r} is not among the options")
    return found[0]


def lines(options: tuple[str, ...], mark: str = "{}. ") -> str:
    """Options with letters, one on each line."""
    return "\n".join(mark.format(chr(65 + place)) + option for place, option in enumerate(options))


def duration_of(path: Path) -> float | None:
    """Seconds of a video file, None where its container does not say. Raises `SourceError` when it is no video."""
    from onlooker.video import open_video

    with open_video(path) as source:
        return source.info.duration_s


class Rows:
    """Collects questions by video. Use `with rows.row(where)` around each row: what it raises becomes a rejection."""

    def __init__(self, videos: Path, benchmark: str, probe: Callable[[Path], float | None] = duration_of) -> None:
        self.folder, self.benchmark, self.probe = videos, benchmark, probe
        self.rejected: list[Rejected] = []
        self._files: dict[str, tuple[Path, float | None] | str] = {}
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

        Raises `Bad` when there is none, or when it cannot be opened.
        """
        key = names[0]
        if key not in self._files:
            self._files[key] = self._locate(names)
            self._sides[key] = side
        found = self._files[key]
        if isinstance(found, str):
            raise Bad(found)
        return key

    def duration(self, video: str) -> float | None:
        """Seconds of a video that was found."""
        found = self._files[video]
        return None if isinstance(found, str) else found[1]

    def add(self, query: QueryRecord) -> None:
        """Take a question. Raises `Bad` when its id was there before, or its video ends before it is asked."""
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

    def reading(self) -> Reading:
        """Everything, in the order of the videos' first questions."""
        items = []
        for key, queries in self._queries.items():
            found = self._files[key]
            assert not isinstance(found, str), key
            path, length = found
            last_s = max(query.ask_time for query in queries)
            record = VideoRecord(key, str(path), length or last_s, 0.0, self.benchmark, side=self._sides.get(key, ()))
            ordered = tuple(sorted(queries, key=lambda query: query.ask_time))
            items.append(Item(record, ordered, lambda fps, path=path: _frames(path, fps)))
        return Reading(tuple(items), tuple(self.rejected))

    def _locate(self, names: tuple[str, ...]) -> tuple[Path, float | None] | str:
        for name in names:
            base = self.folder / name.removeprefix("./")
            for path in (base, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)):
                if path.is_file():
                    try:
                        return path, self.probe(path)
                    except OnlookerError as error:
                        return f"the video cannot be opened: {error.what} ({path.name})"
        return f"the video is missing: {names[0]}"


def _frames(path: Path, fps: float) -> Iterator[Frame]:
    from onlooker.video import Ahead, open_video

    # Decoded while the model is at work: many videos share its steps, which would wait for all their decoders.
    with open_video(path, fps=fps) as source, Ahead(iter(source)) as frames:
        yield from frames
