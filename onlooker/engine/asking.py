"""Many questions about one moment of a stream, in the same passes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onlooker.core.checks import words
from onlooker.core.errors import InputError
from onlooker.core.events import Answer
from onlooker.engine.request import Request
from onlooker.engine.sampling import Decoding

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

AT_ONCE = 32
"""Questions in flight together, by default."""

REALISES = ("batchllm",)
"""The published system that this module stands for (`tools/systems.py`)."""


def ask_many(
    session: "Session",
    engine: "Engine",
    questions: Sequence[str],
    *,
    at: float | None = None,
    since: float | None = None,
    at_once: int = AT_ONCE,
    **decoding: Any,
) -> Iterator[Answer]:
    """The answers to many questions about one moment, `at_once` of them in flight together; the further options are
    those of `Session.ask`, and so are the errors, which name the question.

    BatchLLM (arXiv 2412.03594) finds prefixes that requests share and runs such requests together; here the prefix is
    known, since it is the stream: what all questions see of it is in memory once, and is read once for all of them in
    every layer (`PackedAttention`). Not as there: nothing is searched for, and no order is planned, as all questions
    have one prefix. What a question recalls for itself (`rekv`) or reads anew (`flash_vstream`) stays its own.
    """
    if isinstance(questions, str) or at_once < 1:
        given = f"at_once={at_once}" if at_once < 1 else repr(questions)[:80]
        raise InputError("a list of questions, some at a time", given=given, do='ask_many(["...", "..."], at_once=32)')
    for number, question in enumerate(questions):
        words(f"question {number + 1} of {len(questions)}", question, do="ask something, or leave it out")
    wishes = Decoding(**decoding)
    for start in range(0, len(questions), at_once):
        flying: list[Request] = []
        try:
            for question in questions[start : start + at_once]:
                flying.append(session.submit(question, at=at, since=since, decoding=wishes))
            while pending := [request for request in flying if not request.done]:
                engine.step_requests(pending)
        except BaseException:
            for request in flying:
                if not request.done:
                    request.abandon()
            raise
        yield from (request.answer() for request in flying)
