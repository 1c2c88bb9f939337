"""Questions beside the stream that nobody is answered: how likely yes is, how likely what was said, what to say.

They are stepped like a `Request` (`pending`, `accept`, `done`) and may share passes with frames and questions. Each is
put to a fork of the memory: the stream does not change, and no answer is counted.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy, Refiner, VideoModel
from onlooker.core.errors import InputError, ModelError
from onlooker.core.events import Answer
from onlooker.core.spans import Layout, SaidPlace
from onlooker.core.state import StreamState
from onlooker.engine.packing import Work
from onlooker.engine.reading import Reading
from onlooker.engine.request import Request
from onlooker.engine.sampling import Decoding
from onlooker.kvstore import KVStore

if TYPE_CHECKING:
    from onlooker.engine.session import Session

SPELLINGS = ("{}", " {}")
"""How a word may begin an answer: alone, and after the blank that some templates leave to the answer."""


@dataclass(frozen=True)
class YesNo:
    """The tokens that say yes and no in one model's vocabulary."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, model: VideoModel) -> "YesNo":
        """Every spelling (case, leading blank) that is one token. Raises `ModelError` when a word has none."""
        found = {}
        for word in ("yes", "no"):
            written = [form.format(case) for form in SPELLINGS for case in (word, word.capitalize(), word.upper())]
            ids = [model.retrieval_ids(text) for text in written]
            found[word] = tuple(sorted({one[0] for one in ids if len(one) == 1}))
            if not found[word]:
                raise ModelError(
                    f"the model has no single token for {word!r}, so its probability cannot be read",
                    given=model.spec.name,
                    do="choose another model for rules",
                )
        return cls(found["yes"], found["no"])

    def read(self, scores: Tensor) -> tuple[float, float]:
        """From scores `[vocabulary]`: p(yes) / (p(yes) + p(no)), and p(yes) + p(no). Waits for the device once."""
        scores = scores.float()
        words = torch.stack([torch.logsumexp(scores[list(ids)], 0) for ids in (self.yes, self.no)])
        ratio, mass = words.softmax(0)[0], (words - torch.logsumexp(scores, 0)).exp().sum()
        yes, said = torch.stack([ratio, mass]).tolist()
        return yes, said


@dataclass
class Quiet:
    """A session as a question sees it, which is not told of the answer (`request.Asked`)."""

    model: VideoModel
    memory: MemoryPolicy
    refiner: Refiner
    states: dict[str, StreamState]
    store: KVStore
    layout: Layout
    held: Callable[[str], Sequence[Reading]]

    @classmethod
    def of(cls, session: "Session", notes: bool = True) -> "Quiet":
        """What `session` shows a question now, with its hidden notes or without. Raises `InputError` before its first
        frame."""
        session.check_open()
        if session.time_s is None:
            raise InputError("there is nothing to look at yet", given="no frame was pushed", do="push a frame first")
        return cls(
            session.model,
            session.memory,
            session.refiner,
            session.states,
            session.store,
            session.layout,
            functools.partial(session.held, notes=notes),
        )

    def note_answer(self, answer: Answer) -> None:
        """Nobody counts it."""


class Aside:
    """A question beside the stream, of which only what its scores tell is wanted (`InFlight`)."""

    def __init__(self, session: "Session", request: Request, priority: int = 0) -> None:
        self.session, self._request, self.priority = session, request, priority
        self.time_s = request.time_s
        """Stream time of the frame that it is about."""

    @property
    def done(self) -> bool:
        """True when it is known what was asked, or the question was cancelled."""
        return self._request.done

    def pending(self) -> Work:
        """The tokens that have to be read next."""
        work = self._request.pending()
        return replace(work, priority=self.priority) if self.priority else work

    def accept(self, scores: Tensor | None) -> str:
        """Take the scores of the pending work; says nothing."""
        self._request.accept(scores)
        return ""

    def cancel(self) -> None:
        """Stop here and let go of the view of the memory."""
        self._request.cancel()


class Probe(Aside):
    """A yes-or-no question. Afterwards `probability` is that of yes against no, and `mass` the share of all words that
    yes and no have together: when that is small, the prompt was no yes-or-no question to this model."""

    def __init__(self, session: "Session", prompt: str, words: YesNo) -> None:
        asked = Quiet.of(session)
        now = session.now_s
        super().__init__(session, Request(asked, prompt, now, (0.0, now), Decoding(max_new_tokens=1)))
        self.probability: float | None = None
        self.mass: float | None = None
        self._words = words

    def accept(self, scores: Tensor | None) -> str:
        """Take the scores of the pending work; the first are all that is wanted."""
        if scores is None:
            return super().accept(None)
        self.probability, self.mass = self._words.read(scores)
        self.cancel()
        return ""


class Retelling(Aside):
    """What was said, told again as the answer to the same prompt after what is remembered now.

    Afterwards `perplexity` is that of its tokens: the exponential of the mean of their negative log-likelihoods. One
    pass reads the prompt and all tokens but the last; the scores after each are exact.
    """

    def __init__(self, session: "Session", prompt: str, ids: Sequence[int]) -> None:
        asked = Quiet.of(session)
        now, told = session.now_s, tuple(ids)
        decoding = Decoding(max_new_tokens=len(told))
        super().__init__(session, Request(asked, prompt, now, (0.0, now), decoding, given=told))
        self.perplexity: float | None = None
        self._ids = told

    def accept(self, scores: Tensor | None) -> str:
        """Take the scores of the pending work; says nothing."""
        self._request.accept(scores)
        if self.done and (told := self._request.told) is not None:
            ids = torch.tensor(self._ids, device=told.device)
            likely = told.float().log_softmax(-1).gather(-1, ids[:, None])
            self.perplexity = math.exp(min(700.0, -float(likely.mean())))
        return ""


class Reply(Aside):
    """What a rule, or a thinker, has to say: an answer to its prompt that nobody else is told of, from what was seen
    since a stream time. `said` are its token ids."""

    def __init__(
        self,
        session: "Session",
        prompt: str,
        longest: int,
        *,
        since_s: float = 0.0,
        priority: int = 0,
        place: SaidPlace = "behind",
        notes: bool = True,
    ) -> None:
        asked = Quiet.of(session, notes)
        now = session.now_s
        request = Request(asked, prompt, now, (since_s, now), Decoding(longest, place=place))
        super().__init__(session, request, priority)

    @property
    def finished(self) -> bool:
        """True when it came to its end, and was not cancelled."""
        return self._request.done and self._request.finish != "cancelled"

    @property
    def text(self) -> str:
        """What was said, once `done`."""
        return self._request.answer().text

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens of it."""
        return self._request.said
