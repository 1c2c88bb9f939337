"""Streams on models that remember nothing: a session keeps the last pictures, a question looks at them anew."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from onlooker.compress.identity import Identity
from onlooker.core import registry
from onlooker.core.checks import words
from onlooker.core.contracts import ClipAnswer, ClipModel
from onlooker.core.errors import InputError, ModelError
from onlooker.core.events import Answer, AnswerTiming, Failed, FrameTaken, Usage
from onlooker.core.frame import Frame
from onlooker.core.kinds import KINDS
from onlooker.core.spans import Plan, Span, SpanKind
from onlooker.core.unread import Unread
from onlooker.encode.full import Full
from onlooker.engine.engine import Engine
from onlooker.engine.gating import gated
from onlooker.engine.methods import Methods
from onlooker.engine.request import InFlight, accept_all, release, reread_between
from onlooker.engine.sampling import Decoding
from onlooker.engine.session import Session


class WindowEngine(Engine):
    """An engine around a `ClipModel`; sessions on it look like all others.

    Nothing is computed while watching, so there is nothing to encode sparingly or to compress: only memories that read
    at the question make sense (`last_frames`). Raises `ModelError` for other methods.
    """

    serves: ClassVar[type] = ClipModel

    def __init__(
        self,
        model: ClipModel,
        *,
        profile: bool = False,
        **given: Any,
    ) -> None:
        settings = ("layout", "device_budget_bytes", "host_budget_bytes", "kv", "disk", "arithmetic", "passes")
        unused = {name: given.pop(name) for name in settings if name in given}
        self.serving = Methods(given, {"encoder": "full", "compressor": "identity", "memory": "last_frames"})
        fits = {
            "encoder": isinstance(self.serving.encoder, Full),
            "compressor": isinstance(self.serving.compressor, Identity),
            "memory": self.serving.memory.takes_pictures,
            "refiner": not self.serving.refiner.takes,
            "gate": True,
        }
        for kind, method in self.methods.items():
            if not fits.get(kind, method == registry.make(kind, str(KINDS[kind].default))):
                raise ModelError(
                    f"{type(method).__name__} needs a stream's state, and {model.name} has no adapter that offers one",
                    given=f"{type(method).__name__} on a model that looks at the last frames at every question",
                    do="use encoder=full, compressor=identity, memory=last_frames, refiner=none "
                    "(or onlooker methods for models)",
                )
        if left := sorted(name for name, value in unused.items() if value is not None):
            raise InputError("a model that remembers nothing has no use for a setting", given=", ".join(left))
        self._clip_model = model
        self._begin(profile)

    @property
    def model(self) -> Any:
        return self._clip_model

    @property
    def device(self) -> torch.device:
        return self._clip_model.device

    @property
    def adapters(self) -> Sequence[Any]:
        """None: nothing of such a model is known."""
        return ()

    @property
    def side_towers(self) -> Sequence[Any]:
        """None, either."""
        return ()

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The picture as it is: such a model has a processor of its own."""
        return image

    def about_model(self) -> dict[str, Any]:
        return {"model": self._clip_model.name}

    def new_store(self) -> Any:
        """Nothing: this engine stores no keys and values."""
        return _Nothing()

    def note(
        self, session: Session, text: str, time_s: float | None, kind: SpanKind, embeddings: torch.Tensor | None = None
    ) -> Span:
        """Raises `InputError`: there is no memory to write into."""
        raise InputError(
            "a model without an adapter remembers no text", given=self._clip_model.name, do="put it in the question"
        )

    def submit(
        self, session: Session, question: str, time_s: float, visible: tuple[float, float], decoding: Decoding
    ) -> Any:
        return WindowRequest(self._clip_model, session, question, time_s, visible, decoding)

    def _step(
        self,
        arrivals: Sequence[tuple[Session, Frame]],
        requests: Sequence[InFlight],
        looking: AbstractContextManager[None] | None = None,
    ) -> tuple[list[FrameTaken | Failed], list[str | Exception]]:
        self.check_arrivals(arrivals)
        self.check_requests(requests)
        events: list[FrameTaken | Failed] = [self._keep(session, frame) for session, frame in arrivals]
        with looking or nullcontext():
            return events, accept_all(requests, [None] * len(requests))

    def _keep(self, session: Session, frame: Frame) -> FrameTaken | Failed:
        session.begin(1)
        plan, taken = Plan(), FrameTaken(frame.time_s, session.frames, 0, 0, refreshed=False, recomputed_ratio=None)
        try:
            met = gated(self.serving.gate, self._clip_model, session, frame)
            if met.frame is not None:
                plan = session.absorb(Unread(torch.from_numpy(met.frame.image), frame.time_s, frame.time_s))
        except Exception as error:  # a faulty policy is this stream's affair
            return session.refused(frame.time_s, release(error))
        return session.taken(replace(taken, skipped=met.frame is None), plan, met)


class WindowRequest:
    """A question in flight on a `WindowEngine`: one step, in which the model looks and answers (as `Request`)."""

    def __init__(
        self,
        model: ClipModel,
        session: Session,
        question: str,
        time_s: float,
        visible: tuple[float, float],
        decoding: Decoding,
    ) -> None:
        words("a question", question, do="ask something")
        if decoding.schema is not None:
            raise InputError("a model without an adapter follows no schema", given=model.name, do="ask in words")
        self.question, self.time_s, self.done = question, time_s, False
        self._began, self._model, self._decoding = time.perf_counter(), model, decoding
        self.session = session
        # The pictures as they are now: the stream may move on before the next step.
        pictures = reread_between(session.memory, torch.empty(0, 0), session.states["memory"].fork(), visible)
        self._images = [one.content.numpy() for one in pictures if isinstance(one.content, torch.Tensor)]
        self._said: ClipAnswer | None = None
        self._ended = self._began

    @property
    def has_spoken(self) -> bool:
        """True once the answer is known."""
        return self._said is not None

    def accept(self, scores: torch.Tensor | None) -> str:
        """Look and answer; the whole text."""
        decoding = self._decoding
        self._said = self._model.answer(
            self._images,
            self.question,
            wishes=decoding.wishes(),
            max_new_tokens=decoding.max_new_tokens,
            seed=decoding.seed,
        )
        self._finish()
        return self._said.text

    def cancel(self) -> None:
        """Do not even look."""
        self._finish()

    def abandon(self) -> None:
        """End without an answer, because looking failed. Nobody is told."""
        self.done, self._ended = True, time.perf_counter()

    def _finish(self) -> None:
        self.done, self._ended = True, time.perf_counter()
        self.session.note_answer(self.answer())

    def answer(self) -> Answer:
        """The answer, once `done`. What the model looked at is not known to it, so nothing is cited."""
        assert self.done, "the question is still in flight"
        said, spent = self._said, self._ended - self._began
        return Answer(
            text=said.text if said else "",
            question=self.question,
            time_s=self.time_s,
            citations=(),
            usage=Usage(said.context_tokens, said.prompt_tokens, said.new_tokens) if said else Usage(0, 0, 0),
            timing=AnswerTiming(spent, spent),
            finish="cancelled" if said is None else "stop" if said.complete else "length",
        )


class _Nothing:
    """A store without anything in it."""

    device_budget_bytes = None
    spans = ()

    def num_bytes(self) -> dict[str, int]:
        return {}

    def is_sure_of_room(self, num_tokens: int) -> bool:
        return True

    def fork(self) -> "_Nothing":
        return self

    def export(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, {}

    def load(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        pass
