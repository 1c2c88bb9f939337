"""What the last hidden state of a frame tells: silence, trained heads, and how unlikely the frame was.

The state is there anyway, when a frame was read: no pass is made for these signals. They are computed for the sessions
that somebody listens to, for all of one step together, and stay on the device until a policy looks at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.contracts import FRAME_SIGNALS, Decider, Moment, VideoModel
from onlooker.core.state import StreamState
from onlooker.engine.packing import Work

if TYPE_CHECKING:
    from onlooker.engine.session import Session

LEAST_FRAMES = 4
"""Frames before anything is called unlikely."""
MEMORY_FRAMES = 30
"""The usual is an average over about so many frames."""


@dataclass
class Usual(StreamState):
    """Running mean and variance of the hidden states in which a stream's frames end."""

    replaces = True

    mean: Tensor | None = None
    """float32 `[hidden_dim]`."""
    variance: Tensor | None = None
    """float32 `[hidden_dim]`."""
    frames: int = 0

    def surprise(self, hidden: Tensor) -> Tensor | None:
        """How far `[hidden_dim]` is from the usual, squared, in variances, averaged over dimensions (a scalar on the
        device); None while hardly anything was seen. It is usual from then on."""
        hidden, surprise = hidden.float(), None
        if self.mean is None or self.variance is None:
            self.mean, self.variance, self.frames = hidden.clone(), torch.zeros_like(hidden), 1
            return None
        off = hidden - self.mean
        if self.frames >= LEAST_FRAMES:
            # A dimension that hardly moved may move a little: a floor of a hundredth of the mean variance.
            floor = self.variance.mean().clamp(min=1e-12) * 1e-2
            surprise = (off.square() / torch.maximum(self.variance, floor)).mean()
        weight = 1 / min(self.frames + 1, MEMORY_FRAMES)
        self.mean = self.mean + weight * off
        self.variance = (1 - weight) * (self.variance + weight * off.square())
        self.frames += 1
        return surprise


@dataclass(frozen=True)
class Heard:
    """What one frame told, on the device; None where it is not offered or not wanted."""

    silence: Tensor | None = None
    """Probability of silence, and that of the likeliest silence less that of the likeliest other token: `[2]`."""
    surprise: Tensor | None = None
    heads: Tensor | None = None
    """Probabilities `[heads]`, in the order of the model's `head_names`."""


@dataclass(frozen=True)
class Wanted:
    """A request as a decision net knows it."""

    decider: Decider
    words: Tensor
    """The mean of its words' embeddings, `[hidden_dim]`."""


def with_heard(moment: Moment, heard: Heard, model: VideoModel) -> Moment:
    """The moment with what its frame told. Waits for the device if it told anything."""
    if heard.silence is not None:
        silent, ahead = heard.silence.tolist()
        moment = replace(moment, silence_probability=silent, silence_is_likeliest=ahead >= 0)
    if heard.surprise is not None:
        moment = replace(moment, surprise=float(heard.surprise))
    if heard.heads is not None:
        moment = replace(moment, heads=dict(zip(model.head_names, heard.heads.tolist(), strict=True)))
    return moment


def to_decide(model: VideoModel, prompt: str) -> Wanted:
    """A request to the model's decision net."""
    assert model.decider is not None, "a model that offers decision has one"
    return Wanted(model.decider, model.embed_text(model.retrieval_ids(prompt)).detach().float().mean(0))


def to_hear(session: "Session", work: Work) -> Work:
    """The work of reading a frame, with its last hidden state if somebody listens to the session."""
    return replace(work, wants_hidden=True) if FRAME_SIGNALS & session.wanted.keys() else work


def listen(model: VideoModel, ends: Sequence[tuple["Session", Tensor | None]]) -> None:
    """Note for each session what the frame tells that ends in a hidden state `[hidden_dim]` (None: nobody asked).

    All scores come of one product. Does not wait for the device.
    """
    heard = [(session, hidden) for session, hidden in ends if hidden is not None]
    if not heard:
        return
    rows = torch.stack([hidden for _, hidden in heard])
    wanted = set().union(*(session.wanted.keys() for session, _ in heard))
    silence = heads = None
    if model.silence_ids and "silence_probability" in wanted:
        likely = model.frame_end_logits(rows).float().softmax(-1)
        silent = torch.stack([likely[:, token] for token in sorted(model.silence_ids)])
        for token in model.silence_ids:
            likely[:, token] = 0.0
        silence = torch.stack([silent.sum(0), silent.amax(0) - likely.amax(-1)], dim=1)
    if model.head_names and "heads" in wanted:
        heads = model.heads(rows)
    for n, (session, _) in enumerate(heard):
        session.heard = Heard(
            None if silence is None else silence[n],
            session.usual.surprise(rows[n]) if "surprise" in session.wanted else None,
            None if heads is None else heads[n],
        )
