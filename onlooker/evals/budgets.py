"""Which setting makes a compressor keep a given share of the tokens: measured, on clips that are not asked about.

Ratios are names: what a method keeps of a real stream hangs on the stream. So before methods are compared at equal
budget, the setting of each is looked for that keeps so much, on clips of their own (`CLIPS`), without the language
model.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from onlooker.compress import Batched
from onlooker.core import registry
from onlooker.core.contracts import Compressor, EncoderAccelerator, VideoModel
from onlooker.core.errors import OnlookerError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.engine import Engine
from onlooker.evals.item import Item

CLIPS = 6
"""Clips on which settings are looked for."""
CLOSE, FITS = 0.02, 0.15
"""How near, as a share of the budget, the search goes on to, and what counts as met."""
STEPS, PLATEAU = 12, 2
"""Tries at most, and how many in a row may change nothing."""


@dataclass(frozen=True)
class Knob:
    """A compressor with one setting left open."""

    name: str
    """What tables call it."""
    text: str
    """The method with `{n}`, tokens a frame, or `{x}`, a number that is looked for (or `{minus}`, less of it); more of
    it keeps more."""
    low: float = 0.0
    high: float = 1.0
    """Where `x` is looked for."""


@dataclass(frozen=True)
class Setting:
    """What was found for one compressor and share."""

    name: str
    share: float
    """The share of the tokens that was asked for."""
    text: str
    """The method with its setting."""
    measured: float
    """The share that it kept of the clips it was set on."""
    failure: str = ""
    """Why there is none."""

    @property
    def fits(self) -> bool:
        """Whether it keeps what was asked for, about."""
        return not self.failure and abs(self.measured - self.share) <= FITS * self.share


_OWN: dict[str, tuple[Knob, ...]] = {
    "dtd": (
        Knob("dtd", "dtd:threshold={x:.5f}", -1.0, 1.0),
        Knob("dtd anchored", "dtd:anchored=true,refresh=64,threshold={x:.5f}", -1.0, 1.0),
        Knob("dtd pixels", "dtd:compared=pixels,pixel_threshold={minus:.5f}", -0.5, 0.0),
    ),
    "rate": (Knob("dtd at a rate", "rate(dtd):tokens_per_s={x:.4f}", 0.01, 64.0),),
    "dycoke": (Knob("dycoke", "dycoke:between_ratio={x:.4f}", 0.001, 1.0),),
    "sttm": (Knob("sttm", "sttm:space={x:.5f},time={x:.5f}", 0.0, 1.0),),
    # Chains, a second name of flashvid, and what keeps one number of tokens whatever one asks for.
    "identity": (), "windowed": (), "mean_pool": (), "carrier": (), "random": (), "uniform": (),
}  # fmt: skip


def knobs() -> Iterator[Knob]:
    """The open setting of every compressor that has one: what is said above, else `keep` or `keep_ratio`."""
    for name in registry.names("compressor"):
        if name in _OWN:
            yield from _OWN[name]
            continue
        fields = {one.name for one in dataclasses.fields(registry.method_class("compressor", name))}
        if "keep" in fields:
            yield Knob(name, f"{name}:keep={{n}}")
        elif "keep_ratio" in fields:
            yield Knob(name, f"{name}:keep_ratio={{x:.5f}}", 0.001, 1.0)


@dataclass
class _Heard(StreamState):
    """The frames of one stream as a compressor gets them."""

    replaces: ClassVar[bool] = True

    frames: list[VisualTokens] = field(default_factory=list)


@dataclass(frozen=True)
class _Recorder(Batched):
    """Keeps nothing, and remembers what came."""

    needs: Any = frozenset()

    def new_state(self) -> _Heard:
        return _Heard()

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        for tokens, state in zip(batch, states, strict=True):
            assert isinstance(state, _Heard)
            state.frames = [*state.frames, tokens.owned()]
        return list(batch)


def tokens_of(
    model: VideoModel, items: Sequence[Item], fps: float, encoder: str | EncoderAccelerator = "full"
) -> list[list[VisualTokens]]:
    """All frames of some videos as a compressor gets them, with all that the model can tell of a frame."""
    recorder: Any = _Recorder(model.described)
    engine = Engine(model, encoder=encoder, compressor=recorder, memory="last_frames:frames=1", passes="plain")
    sessions = [engine.open() for _ in items]
    sources = [item.open(fps) for item in items]
    while arrivals := [
        (session, frame)
        for session, source in zip(sessions, sources, strict=True)
        if (frame := next(source, None)) is not None
    ]:
        engine.step(arrivals)
    found = []
    for session in sessions:
        state: Any = session.states["compressor"]
        found.append(state.frames)
        session.close()
    return found


@torch.no_grad()
def kept(method: Compressor, clips: Sequence[Sequence[VisualTokens]]) -> float:
    """The share of the clips' tokens that a compressor gives out."""
    states, count = [method.new_state() for _ in clips], 0
    for number in range(max(map(len, clips))):
        there = [n for n, clip in enumerate(clips) if number < len(clip)]
        outs = method.compress_streams([clips[n][number] for n in there], [states[n] for n in there])
        count += sum(map(len, outs))
    flushed = [method.flush(state) for state in states]
    count += sum(len(tokens) for tokens in flushed if tokens is not None)
    return count / sum(len(tokens) for clip in clips for tokens in clip)


def settings(
    knob: Knob, shares: Sequence[float], model: VideoModel, clips: Sequence[Sequence[VisualTokens]]
) -> list[Setting]:
    """The settings of a compressor that keep these shares, or the nearest there are. What was measured for one share
    tells where to look for the next."""
    tried: dict[float, Setting] = {}
    return [_setting(knob, share, model, clips, tried) for share in shares]


def _setting(
    knob: Knob,
    share: float,
    model: VideoModel,
    clips: Sequence[Sequence[VisualTokens]],
    tried: dict[float, Setting],
) -> Setting:
    try:
        if "{n}" in knob.text:
            text = knob.text.format(n=max(1, round(share * len(clips[0][0]))))
            return Setting(knob.name, share, text, _measured(text, model, clips))
        return _searched(knob, share, model, clips, tried)
    except OnlookerError as error:
        return Setting(knob.name, share, knob.text, 0.0, str(error))


def _searched(
    knob: Knob,
    share: float,
    model: VideoModel,
    clips: Sequence[Sequence[VisualTokens]],
    tried: dict[float, Setting],
) -> Setting:
    """By halves, between what is known to keep less and what is known to keep more; `tried` is what is known."""
    low = max((x for x, one in tried.items() if one.measured < share), default=knob.low)
    high = min((x for x, one in tried.items() if one.measured >= share and x > low), default=knob.high)
    known = [replace(one, share=share) for one in tried.values()]
    best, same = min(known, key=lambda one: abs(one.measured - share), default=None), 0
    if best is not None and abs(best.measured - share) <= CLOSE * share:
        return best
    # A ratio that means what it says is the first try; a threshold starts in the middle.
    at = share if low < share < high and "ratio" in knob.text else (low + high) / 2
    for step in range(STEPS):
        text = knob.text.format(x=at, minus=-at)
        tried[at] = one = Setting(knob.name, share, text, _measured(text, model, clips))
        same = same + 1 if best is not None and one.measured == best.measured else 0
        if best is None or abs(one.measured - share) < abs(best.measured - share):
            best = one
        if abs(one.measured - share) <= CLOSE * share or (same >= PLATEAU and step >= STEPS // 2):
            break
        low, high = (at, high) if one.measured < share else (low, at)
        at = (low + high) / 2
    assert best is not None
    return best


def _measured(text: str, model: VideoModel, clips: Sequence[Sequence[VisualTokens]]) -> float:
    method = registry.make("compressor", text)
    method.check(model)
    return kept(method, clips)
