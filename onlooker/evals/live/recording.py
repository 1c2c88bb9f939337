"""Watch a stream once, and write down what every policy could have seen; then let policies decide, as often as wanted.

What a policy sees of a frame does not hang on what was said before, but for a decision net's history, which is
computed again here: so one run of the model serves every policy at every threshold.
"""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onlooker.core.contracts import SILENT, Decider, Decision, Moment, ResponsePolicy, VideoModel
from onlooker.core.events import Failed, FrameTaken
from onlooker.core.state import StreamState
from onlooker.engine import Engine, Session
from onlooker.engine.hearing import to_decide
from onlooker.engine.watching import Watch
from onlooker.evals.live.scenes import Asked, Scene
from onlooker.respond import Rule

OFFERED = ("silence_probability", "heads", "decision")
MEMORY = "sliding_window:window_tokens=3168"
"""48 frames of 66 tokens: the longest clips that pocket models were trained on."""
FRAME_TOKENS = 66
"""Of a frame with its time."""


def sight(model: VideoModel) -> str:
    """The memory through which a model watches: what it was taught on, or else `MEMORY`."""
    return f"sliding_window:window_tokens={FRAME_TOKENS * model.taught_frames}" if model.taught_frames else MEMORY


class Recorder(ResponsePolicy):
    """Writes down what it sees, and never speaks."""

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs  # pyright: ignore[reportAttributeAccessIssue] - what the model at hand offers
        self.moments = []

    def new_state(self) -> StreamState:
        return StreamState()

    def decide(self, moment: Moment, state: StreamState) -> Decision:
        """Silent."""
        self.moments.append(moment)
        return SILENT


@dataclass(frozen=True)
class Recorded:
    """A stream as policies see it."""

    scene: Scene
    moments: Mapping[str, Sequence[Moment]]
    """By request, a frame after the other."""
    carriers: Sequence[Tensor | None]
    """Visual tokens of every frame, for a decision net."""
    words: Mapping[str, Tensor]
    """What the net knows of each request."""
    decider: Decider | None


def record(model: VideoModel, scenes: Sequence[Scene]) -> list[Recorded]:
    """Watch streams side by side with all their requests, all tokens read, as far back as `sight` says. The share of
    tokens that could be dropped comes from a second look through TimeChat-Online's compressor, which nothing is read
    from."""
    needs = frozenset({"speak_probability", "surprise", *(name for name in OFFERED if name in model.offers)})
    engine = Engine(model, encoder="full", compressor="identity", memory=sight(model))
    dropping = Engine(model, encoder="full", compressor="dtd", memory="last_frames:frames=1")
    watched = [_Watched.of(scene, engine, dropping, needs) for scene in scenes]
    for frames in zip(*(scene.frames() for scene in scenes), strict=True):
        pairs = list(zip(watched, frames, strict=True))
        for one, frame in pairs:
            one.read_side(frame.time_s)
        taken = [_taken(event) for event in engine.step([(one.session, frame) for one, frame in pairs])]
        asides = []
        for (one, frame), event in zip(pairs, taken, strict=True):
            asides += one.watch.due(frame, event)
            one.carriers.append(one.session.carriers)
        while pending := [aside for aside in asides if not aside.done]:
            engine.step_requests(pending)
        seen = [_taken(event) for event in dropping.step([(one.dropping, frame) for one, frame in pairs])]
        for one, event in zip(watched, seen, strict=True):
            one.watch.take()
            one.kept.append(event.tokens_kept / max(1, event.tokens_seen))
    return [one.recorded(model) for one in watched]


def _taken(event: FrameTaken | Failed) -> FrameTaken:
    if isinstance(event, Failed):
        raise event.error
    return event


@dataclass
class _Watched:
    """A stream that is being recorded."""

    scene: Scene
    session: Session
    dropping: Session
    watch: Watch
    recorders: Mapping[str, Recorder]
    kept: list[float] = field(default_factory=list)
    carriers: list[Tensor | None] = field(default_factory=list)
    unread: deque[tuple[float, str]] = field(default_factory=deque)

    @classmethod
    def of(cls, scene: Scene, engine: Engine, dropping: Engine, needs: frozenset[str]) -> "_Watched":
        recorders = {asked.name: Recorder(needs) for asked in scene.asked}
        session = engine.open()
        watch = session.watch([Rule(asked.name, asked.prompt, recorders[asked.name], 0.0) for asked in scene.asked])
        return cls(scene, session, dropping.open(), watch, recorders, unread=deque(scene.side))

    def read_side(self, until_s: float) -> None:
        """Write what stands beside the pictures up to a time into the memory. What comes before the first frame is
        behind it."""
        if self.session.time_s is None:
            return
        while self.unread and self.unread[0][0] <= until_s:
            self.session.note(self.unread.popleft()[1])

    def recorded(self, model: VideoModel) -> Recorded:
        """What came of it; its sessions are closed."""
        moments = {
            name: [dataclasses.replace(m, kept_ratio=share) for m, share in zip(one.moments, self.kept, strict=True)]
            for name, one in self.recorders.items()
        }
        self.session.close()
        self.dropping.close()
        words = {a.name: to_decide(model, a.prompt).words for a in self.scene.asked} if model.decider else {}
        return Recorded(self.scene, moments, self.carriers, words, model.decider)


@dataclass
class _Playing:
    policy: ResponsePolicy
    asked: Asked
    state: StreamState
    deciding: StreamState | None
    forgetful: bool
    said: list[float]


@torch.no_grad()
def play(
    recorded: Recorded, policies: Mapping[str, ResponsePolicy], forgetful: frozenset[str] = frozenset()
) -> dict[tuple[str, str], list[float]]:
    """When each policy speaks of each request, by policy and request. Those in `forgetful` are not told what they have
    answered."""
    runs = []
    for name, policy in policies.items():
        for asked in recorded.scene.asked:
            decider = recorded.decider if "decision" in policy.needs else None
            state = None if decider is None else decider.new_state()
            one = _Playing(policy, asked, policy.new_state(), state, name in forgetful, [])
            runs.append(((name, asked.name), one))
    deciding = [one for _, one in runs if one.deciding is not None]
    for number, carriers in enumerate(recorded.carriers):
        decided = _decide(recorded, deciding, number, carriers)
        for place, (_, one) in enumerate(runs):
            moment = recorded.moments[one.asked.name][number]
            said_s = one.said[-1] if one.said else None
            moment = dataclasses.replace(moment, said_s=said_s, decision=decided.get(id(one)))
            if one.policy.decide(moment, one.state).outcome != "silent":
                runs[place][1].said.append(moment.time_s)
    return {key: one.said for key, one in runs}


def _decide(recorded: Recorded, runs: list[_Playing], number: int, carriers: Tensor | None) -> dict[int, float]:
    if not runs or carriers is None:
        return {}
    assert recorded.decider is not None
    since: list[float | None] = []
    for one in runs:
        now = recorded.moments[one.asked.name][number].time_s
        since.append(now - one.said[-1] if one.said and not one.forgetful else None)
    words = torch.stack([recorded.words[one.asked.name] for one in runs])
    states = [one.deciding for one in runs if one.deciding is not None]
    likely = recorded.decider.decide(carriers, words, since, states)
    return {id(one): value for one, value in zip(runs, likely.tolist(), strict=True)}
