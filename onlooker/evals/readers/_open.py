"""Open questions, whose published scores need a judge: what we can mark without one, and how to plug one in."""

from collections.abc import Callable, Sequence

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Mark, Marker

Judge = Callable[[str, str, str], float]
"""(question, reference, reply) to a worth of 0 to 1."""


def word_overlap(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The judge-free stand-in: 1 when the reply is the reference, else the F1 of their words. It is no accuracy."""
    text = replies[0].text
    same = matching.normal(text) == matching.normal(query.answer)
    return [Mark(1.0 if same else matching.token_f1(text, query.answer), "word overlap")]


def judged(judge: Judge) -> Marker:
    """A scorer around a judge of your own, for the published numbers."""

    def mark(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
        return [Mark(judge(query.question, query.answer, replies[0].text), "judge")]

    return mark
