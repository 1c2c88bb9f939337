"""Offline multiple choice: one question at the end of a video, and the parsers that were published for it."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Mark
from onlooker.evals.readers._rows import Options, QuestionRows, lines

Parser = Callable[[str], str | None]


def at_the_end(
    rows: QuestionRows, benchmark: str, name: str, video: str, task: str, words: str, options: Options,
    *, duration_s: Any = None, prompt: str = "", meta: dict[str, Any] | None = None,
) -> QueryRecord:  # fmt: skip
    """A question about a whole video, asked when the file ends (or where the annotation says it does)."""
    length = rows.duration(video)
    ask_s = length if length is not None else float(duration_s or 0.0)
    listed = f"Question: {words}\nOptions:\n{lines(options.texts, '({}) ')}\nOnly give the best option.\nBest option: ("
    return QueryRecord(
        id=name, video=video, benchmark=benchmark, task=task, family="offline", ask_time=ask_s, question=words,
        answer=options.answer, options=options.texts, meta={"prompt": prompt or listed} | options.meta | (meta or {}),
    )  # fmt: skip


def marker(parse: Parser) -> Callable[[QueryRecord, Sequence[ReplyRecord]], list[Mark]]:
    """A scorer from a published way to find the letter in a reply."""

    def mark(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
        return [Mark(float(parse(replies[0].text) == matching.option_letter(query)))]

    return mark


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """One unambiguous letter, or the option word for word."""
    return [Mark(float(matching.chose_right(query, replies[0].text)))]


def before_bracket(text: str) -> str:
    """MLVU: the character before the first ")", else the whole reply, as it is ("a)" is not "A")."""
    return text[text.index(")") - 1 : text.index(")")] if ")" in text else text


def before_bracket_or_first(text: str) -> str:
    """ReKV: the character before the first ")", else the first character of the reply."""
    return before_bracket(text) if ")" in text else text[:1]


def first_capital(last: str) -> Parser:
    """Video-MME and LongVideoBench: the first capital letter of the range, inside a word or not ("Dogs" is a D)."""

    def parse(text: str) -> str | None:
        for prefix in ("The best answer is", "The correct answer is", "The answer is", "Best answer:", "Best option:"):
            text = text.replace(prefix, "")
        if len(text.split()) > 10 and not re.search(rf"[A-{last}]", text):
            return None
        found = re.search(rf"[A-{last}]", text)
        return found[0] if found else None

    return parse
