"""One question on its way to an answer, pass by pass, beside a stream that it never touches."""

import itertools
import logging
import time
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from onlooker.core.checks import words
from onlooker.core.contracts import MemoryPolicy, Refiner, VideoModel
from onlooker.core.errors import InputError, OnlookerError
from onlooker.core.events import Answer, AnswerTiming, Citation, FinishReason, Usage
from onlooker.core.spans import Layout, Recall, Span
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread
from onlooker.engine.packing import Work
from onlooker.engine.reading import Reading, held_works, unread_reading
from onlooker.engine.sampling import Decoding, Sampler
from onlooker.kvstore import KVStore, QuestionView, Segment, Spans

LOG = logging.getLogger("onlooker.engine")
MOST_CITATIONS = 8


class Asked(Protocol):
    """What a question needs of the session it is put to."""

    model: VideoModel
    memory: MemoryPolicy
    refiner: Refiner
    states: dict[str, StreamState]
    store: KVStore
    layout: Layout

    def held(self, question: str, /) -> Sequence[Reading]:
        """What has been seen and is not remembered yet, oldest first, and the notes that the question looks for."""
        ...

    def note_answer(self, answer: Answer) -> None:
        """Told once, when the answer is complete."""
        ...


class InFlight(Protocol):
    """What a step moves on by one pass: a question on its way to an answer, or a probe of one word."""

    session: Any
    """Whom it was put to."""

    @property
    def done(self) -> bool:
        """True when nothing is pending any more."""
        ...

    def pending(self) -> Work:
        """The tokens that have to be read next."""
        ...

    def accept(self, scores: Tensor | None) -> str:
        """Take the scores of the pending work; the new text they led to (may be empty)."""
        ...


def release(error: Exception) -> Exception:
    """The error as its catcher may keep it: without its traceback, which holds everything that the step was working on.

    It may be kept for long, and the memory of a step that failed for want of memory is needed at once. The traceback of
    an error that is not one of ours goes to the log instead.
    """
    if not isinstance(error, OnlookerError):
        LOG.warning("a part of a step failed", exc_info=error)
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def accept_all(requests: Sequence[InFlight], scores: Sequence[Tensor | None]) -> list[str | Exception]:
    """Give each its scores: the new text of each, or what it failed of, which is nobody else's affair."""
    told: list[str | Exception] = []
    for request, score in zip(requests, scores, strict=True):
        try:
            told.append(request.accept(score))
        except Exception as error:
            told.append(release(error))
    return told


def all_said(told: Sequence[str | Exception]) -> list[str]:
    """The texts. Raises what the first that failed has failed of."""
    texts = []
    for text in told:
        if isinstance(text, Exception):
            raise text
        texts.append(text)
    return texts


class Request:
    """A question in flight: hand `pending()` to a pass, give its scores to `accept()`, until `done`.

    The states are: look for memories (only if the policy scores layers), read the prompt, decode token by token. The
    stream may go on between passes; the question keeps seeing the memory as it was when it was put.
    """

    def __init__(
        self,
        session: "Asked",
        question: str,
        time_s: float,
        visible: tuple[float, float],
        decoding: Decoding,
        *,
        given: tuple[int, ...] = (),
    ):
        """With `given` ids the answer is not decoded but read; afterwards `told` are the scores before each of them."""
        words("a question", question, do="ask something")
        self.question, self.time_s, self.decoding = question, time_s, decoding
        self.session = session
        """Whom it is put to."""
        self.done, self.finish = False, "stop"
        self._began = time.perf_counter()
        self._first_s: float | None = None
        self._model, self._ids, self._text, self._given = session.model, [], "", given
        self.told: Tensor | None = None
        """Scores of the given words, `[given, vocabulary]`, once `done`."""
        self._prompt = session.model.question_ids(question)
        check_length(session.model, self._prompt, decoding)
        self._constraint = None if decoding.schema is None else session.model.constraint(decoding.schema)
        self._store = session.store
        self._passes = self._run(session, visible)
        self._view: QuestionView | None = None
        self._next: Work | None = next(self._passes)

    @property
    def has_spoken(self) -> bool:
        """True once the first token is known; its text may come later."""
        return self._first_s is not None

    @property
    def said(self) -> tuple[int, ...]:
        """The token ids of the answer so far."""
        return tuple(self._ids)

    def pending(self) -> Work:
        """The tokens that have to be read next."""
        assert self._next is not None, "a finished question has nothing pending"
        return self._next

    def accept(self, scores: Tensor | None) -> str:
        """Take the scores of the pending work; the new text they led to (may be empty)."""
        before = self._text
        try:
            self._next = self._passes.send(scores)
        except StopIteration:
            self._next = None
            self._end()
        return self._text[len(before) :]

    def cancel(self) -> None:
        """Stop here; what was said so far is the answer."""
        if not self.done:
            self.finish = "cancelled"
            self._passes.close()
            self._end()

    def abandon(self) -> None:
        """End without an answer, because a pass failed: let go of what the question sees. Nobody is told."""
        self.done = True
        self._passes.close()
        if self._view is not None:
            self._view.close()

    def answer(self) -> Answer:
        """The answer, once `done`."""
        assert self.done and self._view is not None, "the question is still in flight"
        now = time.perf_counter()
        return Answer(
            text=self._text.strip(),
            question=self.question,
            time_s=self.time_s,
            citations=self._citations,
            usage=Usage(self._context_tokens, len(self._prompt), len(self._ids)),
            timing=AnswerTiming((self._first_s or now) - self._began, self._ended - self._began),
            finish=self._finish(),
        )

    def _finish(self) -> FinishReason:
        return self.finish  # pyright: ignore[reportReturnType] - one of the three words by construction

    # ------------------------------------------------------------------------------------------------- the passes

    def _run(self, session: "Asked", visible: tuple[float, float]) -> Generator[Work, Tensor | None, None]:
        # All that is read later is taken now: between passes the session goes on, or is closed.
        model, memory, refiner, layout = session.model, session.memory, session.refiner, session.layout
        layer = look_layer(refiner, memory, model.spec.num_layers)
        state = session.states["memory"].fork()
        prompt = torch.cat([model.closing_embeddings(), model.embed_text(self._prompt)])
        held = session.held(self.question)
        readings = [one for one in held if visible[0] <= one.held.start_s and one.held.end_s <= visible[1]]
        if memory.holds_tokens:
            words = model.embed_text(model.retrieval_ids(self.question))
            unread = refiner.refine(reread_between(memory, words, state, visible, bool(readings)), words)
            readings = [*(unread_reading(model, one, layout) for one in unread), *readings]
            rows = sum(len(one.embeddings) for one in readings)
            session.store.check_beside(state.num_bytes() + rows * model.spec.kv_bytes_per_token)
        elif not readings:
            check_seen(session.store.spans, visible)

        scored, scoring, held = memory.scores_layers, memory.scoring(), [one.held for one in readings]
        found: list[Tensor] = []  # by the layers so far, if heads look

        def choose(layer: int, spans: Sequence[Span], scores: Tensor | None) -> Recall:
            if scored and scoring == "queries":
                assert scores is not None, "queries were asked for"
                return memory.recall_rows(layer, spans, scores, state)
            if scored and scoring == "heads":
                found.extend(() if scores is None else (scores,))
                return memory.recall_found(layer, spans, found, state)
            if memory.layered:
                return memory.recall_layer(layer, model.spec.num_layers, spans, state)
            return memory.recall(spans, scores, state)

        view = self._view = self._store.question(
            choose, visible=visible, scored=scored, scoring=scoring, held=held, layered=memory.layered
        )
        if scored:
            words = model.embed_text(model.retrieval_ids(self.question)) if scoring in ("mean", "cosine") else prompt
            yield Work(words, view.retrieval(*model.place_text(len(words))))
        yield from held_works(view, readings)
        if self._given:
            yield from self._retell(prompt, view, refiner, layer)
            return
        scores = yield Work(prompt, words_of(view, refiner, layer, *model.place_text(len(prompt))), wants_logits=True)
        decoding = self.decoding
        choice = model.token_choice(decoding.wishes(), decoding.max_new_tokens)
        sampler = Sampler(choice, decoding.seed, model.spec.device, self._constraint)
        read = [*model.prefix_ids(), *_frame_ids(model, view), *self._prompt] if sampler.looks_back else []
        while True:
            assert scores is not None, "a pass that was asked for scores gave none"
            token = sampler.draw(scores, read, self._ids)
            if self._first_s is None:
                self._first_s = time.perf_counter()
            if token in model.end_ids:
                return
            self._ids.append(token)
            text = model.decode_text(self._ids)
            # An unfinished character of several bytes decodes to the replacement sign: wait for the rest.
            if not text.endswith("\ufffd"):
                self._text = text
            if len(self._ids) >= self.decoding.max_new_tokens:
                self.finish = "length"
                return
            said = view.segment(*model.place_text(1), said=decoding.place)
            scores = yield Work(model.embed_text([token]), said, wants_logits=True)

    def _retell(
        self, prompt: Tensor, view: QuestionView, refiner: Refiner, layer: int | None
    ) -> Generator[Work, Tensor | None, None]:
        """Read the prompt and the given words; where the prompt decides what later words see, by itself first."""
        model, given, parts = self._model, self._model.embed_text(self._given[:-1]), []
        place = self.decoding.place
        if layer is not None or place != "behind":
            parts = [(yield Work(prompt, words_of(view, refiner, layer, *model.place_text(len(prompt))), scored=1))]
            prompt = prompt[:0]
        rest, words = len(self._given) - len(parts), torch.cat([prompt, given])
        if rest:
            parts.append((yield Work(words, view.segment(*model.place_text(len(words)), said=place), scored=rest)))
        self.told = torch.cat([part for part in parts if part is not None])

    def _end(self) -> None:
        self.done, self._ended = True, time.perf_counter()
        self._text = self._model.decode_text(self._ids)
        if self._view is None:
            self._view = self._store.question(_everything)
        recalled, layers = self._view.recalled(), self._model.spec.num_layers
        spans = {number: span for number in recalled if (span := self._view.find(number)) is not None}
        seen = {number: layers_seen for number, layers_seen in recalled.items() if number in spans}
        self._context_tokens = round(self._view.context_tokens())
        self._citations = _cite(spans, self._view.attention_mass(), seen, layers)
        self._view.close()
        self.session.note_answer(self.answer())


def look_layer(refiner: Refiner, memory: MemoryPolicy, num_layers: int) -> int | None:
    """The layer whose look refines rows; None where nobody refines any, or tokens were refined already."""
    return None if memory.holds_tokens and "tokens" in refiner.takes else refiner.layer(num_layers)


def words_of(view: QuestionView, refiner: Refiner, layer: int | None, positions: Tensor, extent: int) -> Segment:
    """The prompt of a question, which refines what is before it if a layer's look does."""
    if layer is None:
        return view.segment(positions, extent)
    return view.refining_segment(positions, extent, layer=layer, pick=refiner.refine_rows, trims_all=refiner.trims_all)


def _frame_ids(model: VideoModel, view: QuestionView) -> list[int]:
    """Ids of the text of the frames that a question sees, such as their times."""
    spans = [view.find(block) for block in sorted(view.recalled())]
    frames = [span for span in spans if span is not None and span.kind == "vision"]
    return [token for span in frames for token in (*model.frame_ids(span.start_s), *model.frame_closing_ids())]


def check_length(model: VideoModel, prompt: Sequence[int], decoding: Decoding) -> None:
    """Raise `InputError` when a question and its answer have more tokens than the model has positions."""
    most = model.spec.max_positions
    needed = len(model.prefix_ids()) + len(prompt) + decoding.max_new_tokens
    if needed > most:
        raise InputError(
            "the question and the longest answer do not fit into the model's positions",
            given=f"{len(prompt)} tokens and {decoding.max_new_tokens} new ones, of {most}",
            do="ask a shorter question, or for a shorter answer",
        )


def check_seen(spans: Spans, visible: tuple[float, float]) -> None:
    """Raise `InputError` when nothing that is remembered lies between two times."""
    seen = spans.between(*visible)
    if len(seen) > int(seen[:1] != [] and seen[0].kind == "prefix"):
        return
    raise _nothing_between(visible, [span for span in (*spans[:2], *spans[-1:]) if span.kind != "prefix"])


def reread_between(
    memory: MemoryPolicy, question: Tensor, state: StreamState, visible: tuple[float, float], or_none: bool = False
) -> list[Unread]:
    """What a memory that holds tokens reads of what was seen wholly between two times. Raises `InputError` when there
    is nothing (unless there may be nothing), or when it is not in order."""
    held = memory.reread(question, state)
    if any(after.at_s < before.at_s for before, after in itertools.pairwise(held)):
        given = ", ".join(f"{one.at_s:.3f}" for one in held)[:200]
        raise InputError("what a memory reads must be in the order of its times", given=given, do="sort by `at_s`")
    seen = [one for one in held if visible[0] <= one.start_s and one.end_s <= visible[1]]
    if not seen and not or_none:
        raise _nothing_between(visible, held)
    return seen


def _nothing_between(visible: tuple[float, float], kept: Sequence[Span | Unread]) -> InputError:
    nothing = "push a frame, and keep some of its tokens"
    return InputError(
        "nothing is remembered of the time that the question is about",
        given=f"{visible[0]:.3f} s to {visible[1]:.3f} s",
        do=f"ask about {kept[0].start_s:.3f} s to {kept[-1].end_s:.3f} s" if kept else nothing,
    )


def _everything(layer: int, spans: Sequence[Span], scores: Tensor | None) -> Recall:
    return Recall(tuple(span.id for span in spans))


def _cite(
    spans: dict[int, Span], mass: dict[int, float], recalled: dict[int, int], layers: int
) -> tuple[Citation, ...]:
    """The spans an answer rests on, most attended first; neighbouring blocks are one span."""
    seen = [spans[i] for i in sorted(recalled) if spans[i].kind != "prefix"]
    total = sum(mass.get(span.id, 0.0) for span in seen)
    if not seen or total <= 0:
        return ()
    # Blocks above an even share of the attention are the ones worth showing.
    telling = [span for span in seen if mass.get(span.id, 0.0) >= total / len(seen)]
    runs: list[list[Span]] = []
    order = {span.id: place for place, span in enumerate(seen)}
    for span in telling:
        if runs and order[span.id] == order[runs[-1][-1].id] + 1 and span.kind == runs[-1][-1].kind:
            runs[-1].append(span)
        else:
            runs.append([span])
    cited = [
        Citation(
            start_s=run[0].start_s,
            end_s=run[-1].end_s,
            share=sum(mass[span.id] for span in run) / total,
            recalled=sum(recalled[span.id] for span in run) / (len(run) * layers),
            kind=run[0].kind,
        )
        for run in runs
    ]
    return tuple(sorted(cited, key=lambda citation: -citation.share)[:MOST_CITATIONS])
