"""The contract suite rejects methods with seeded bugs, each by the point meant for it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from contract_suite import check, failing_points

from onlooker.compress import STCPruner, best
from onlooker.core.contracts import (
    SILENT,
    Compressor,
    Decision,
    Encoded,
    EncoderAccelerator,
    Look,
    MemoryPolicy,
    Moment,
    Refiner,
    ResponsePolicy,
)
from onlooker.core.spans import Plan, Recall, Span
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join

torch.set_num_threads(1)
_seen_by_all: list[torch.Tensor] = []


@dataclass
class LastFrames(StreamState):
    frames: list[torch.Tensor] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True)
class Broken(Compressor):
    """Keeps the six largest tokens, correctly; the bugs are in what follows."""

    keep: int = 6
    """Tokens to keep."""

    def new_state(self) -> LastFrames:
        return LastFrames()

    def compress(self, tokens: VisualTokens, state: Any) -> VisualTokens:
        return tokens.select(best(tokens.features.square().sum(-1), min(self.keep, len(tokens))))


class RemembersInTheModule(Broken):
    def compress(self, tokens, state):
        _seen_by_all.append(tokens.features.mean(0))
        away = (tokens.features - torch.stack(_seen_by_all).mean(0)).square().sum(-1)
        return tokens.select(best(away, min(self.keep, len(tokens))))


class ReturnsTokensByScore(Broken):
    def compress(self, tokens, state):
        score = tokens.features.square().sum(-1)
        return tokens.select(score.argsort(descending=True)[: self.keep])


class ForgetsExtras(Broken):
    def compress(self, tokens, state):
        kept = super().compress(tokens, state)
        return VisualTokens(kept.features, kept.frame, kept.time_s, kept.row, kept.col, kept.grid, kept.weight)


class ShufflesExtras(Broken):
    def compress(self, tokens, state):
        kept = super().compress(tokens, state)
        kept.extras["deepstack"].copy_(tokens.extras["deepstack"][: len(kept)])
        return kept


class AnswersLate(Broken):
    """Holds a frame back until it has seen the next one."""

    def compress(self, tokens, state):
        late = state.held.get("tokens", tokens)
        state.held["tokens"] = tokens
        return super().compress(late, state)


class LooksAhead(Broken):
    """Gives out two frames together, as it should; also when the size changes."""

    @property
    def lookahead(self):
        return 1

    def num_held(self, state):
        return len(state.held)

    def compress(self, tokens, state):
        late = state.held.pop("tokens", None)
        if late is not None and late.grid == tokens.grid:
            return join([super().compress(late, state), super().compress(tokens, state)])
        whole = {name: value.clone() for name, value in tokens.whole.items()}
        state.held["tokens"] = dataclasses.replace(tokens.select(torch.arange(len(tokens))), whole=whole)
        return tokens.select(torch.arange(0)) if late is None else super().compress(late, state)

    def flush(self, state):
        late = state.held.pop("tokens", None)
        return None if late is None else Broken.compress(self, late, state)


class SaysItHoldsNothing(LooksAhead):
    def num_held(self, state):
        return 0


class HoldsTooLong(LooksAhead):
    @property
    def lookahead(self):
        return 0


class GivesOutTwice(LooksAhead):
    def compress(self, tokens, state):
        state.frames.append(torch.zeros(1))
        return super().compress(tokens, state) if len(state.frames) % 4 else Broken.compress(self, tokens, state)


class EditsWhatItGaveOut(Broken):
    def compress(self, tokens, state):
        kept = super().compress(tokens, state)
        for old in state.frames:
            old.mul_(0.5)
        state.frames = [kept.features]
        return kept


class RemembersForEver(Broken):
    def compress(self, tokens, state):
        state.frames.append(tokens.features.mean(0))
        away = (tokens.features - torch.stack(state.frames).mean(0)).square().sum(-1)
        return tokens.select(best(away, min(self.keep, len(tokens))))


class DrawsFromTheGlobalGenerator(Broken):
    def compress(self, tokens, state):
        return tokens.select(best(torch.rand(len(tokens)), min(self.keep, len(tokens))))


class KeepsTheCallersBuffer(Broken):
    def compress(self, tokens, state):
        old = state.frames[0] if state.frames and state.frames[0].shape == tokens.features.shape else 0
        state.frames = [tokens.features]
        return tokens.select(best((tokens.features - old).square().sum(-1), min(self.keep, len(tokens))))


class LooksAtItsNeighbours(Broken):
    def compress_streams(self, batch, states):
        mean = torch.stack([tokens.features.mean() for tokens in batch]).mean()
        return [t.select(best((t.features - mean).square().sum(-1), min(self.keep, len(t)))) for t in batch]


class DoesNothing(Broken):
    def compress(self, tokens, state):
        return tokens


class CountsOnTheMethod(Broken):
    def compress(self, tokens, state):
        object.__setattr__(self, "frames", getattr(self, "frames", 0) + 1)
        return super().compress(tokens, state)


COMPRESSORS = [
    (RemembersInTheModule, "isolation"),
    (RemembersInTheModule, "new_state_is_a_reset"),
    (ReturnsTokensByScore, "order"),
    (ForgetsExtras, "rows_are_carried"),
    (ShufflesExtras, "rows_are_carried"),
    (AnswersLate, "order"),
    (SaysItHoldsNothing, "order"),
    (HoldsTooLong, "order"),
    (GivesOutTwice, "order"),
    (EditsWhatItGaveOut, "emission_is_final"),
    (RemembersForEver, "bounded_state"),
    (DrawsFromTheGlobalGenerator, "determinism"),
    (KeepsTheCallersBuffer, "inputs_are_left_alone"),
    (LooksAtItsNeighbours, "batching"),
    (DoesNothing, "engagement"),
    (CountsOnTheMethod, "settings_are_frozen"),
]


@pytest.mark.parametrize(("broken", "point"), COMPRESSORS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_broken_compressor_is_caught(broken: type[Broken], point: str) -> None:
    failed = _failing("compressor", broken())
    assert point in failed, failed


def test_a_sound_compressor_passes() -> None:
    assert not _failing("compressor", Broken())
    assert not _failing("compressor", LooksAhead())
    assert not failing_points("compressor", STCPruner(keep=7, window=None))


def _failing(kind: str, method: Any) -> set[str]:
    # Its text form would name this test file, which is no method file.
    return failing_points(kind, method) - {"description_round_trip"}


@dataclass(frozen=True)
class OneReferenceForAll(EncoderAccelerator):
    last = {}

    def new_state(self) -> StreamState:
        return StreamState()

    def encode(self, tower: Any, hidden: torch.Tensor, states: Sequence[StreamState]) -> Encoded:
        old = self.last.get(hidden.shape, hidden)
        self.last[hidden.shape] = hidden.clone()
        mixed, taps = (hidden + old) / 2, {}
        for number, layer in enumerate(tower.layers):
            mixed = layer.dense(mixed)
            taps[number] = mixed
        return Encoded(mixed, {n: taps[n] for n in tower.tap_layers}, refreshed=(True,) * len(states))


def test_a_broken_encoder_is_caught() -> None:
    assert {"isolation", "new_state_is_a_reset", "batching"} <= _failing("encoder", OneReferenceForAll())


@dataclass(frozen=True)
class LosesThePrefix(MemoryPolicy):
    def new_state(self) -> StreamState:
        return StreamState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        return Plan(forget=tuple(span.id for span in spans[:-8]))

    def recall(self, spans: Sequence[Span], scores: Any, state: StreamState) -> Recall:
        return Recall(tuple(span.id for span in reversed(spans)))


def test_a_broken_memory_is_caught() -> None:
    assert {"prefix_stays", "recall_is_in_order"} <= _failing("memory", LosesThePrefix())


@dataclass(frozen=True)
class OverItsBudget(Refiner):
    takes: ClassVar[frozenset[str]] = frozenset({"rows"})

    tokens: int | None = None
    """Rows to keep."""
    ratio: float | None = 0.5
    """Share of the rows to keep."""

    def layer(self, num_layers: int) -> int:
        return num_layers

    def refine_rows(self, look: Look) -> torch.Tensor:
        return torch.ones_like(look.vision)


def test_a_broken_refiner_is_caught() -> None:
    assert {"shape", "budget", "engagement"} <= _failing("refiner", OverItsBudget())


@dataclass(frozen=True)
class NeverSpeaks(ResponsePolicy):
    def new_state(self) -> LastFrames:
        return LastFrames()

    def decide(self, moment: Moment, state: Any) -> Decision:
        state.frames.append(torch.tensor(moment.time_s))
        return SILENT


@dataclass(frozen=True)
class Chatters(ResponsePolicy):
    """Knows no quiet time, though it has one, and says how sure it is in words."""

    quiet_s: float = 5.0
    """Not kept."""

    def new_state(self) -> StreamState:
        return StreamState()

    def decide(self, moment: Moment, state: Any) -> Decision:
        return Decision("speak", "very")  # type: ignore[arg-type]


def test_a_broken_response_is_caught() -> None:
    assert {"engagement", "bounded_state"} <= _failing("response", NeverSpeaks())
    assert {"engagement", "decides", "quiet_times_are_kept"} <= _failing("response", Chatters())


def test_an_exception_needs_a_known_point_and_a_reason() -> None:
    for declared in ({"budgett": "a slip"}, {"budget": " "}):
        with pytest.raises(AssertionError):
            failing_points("compressor", type("Excused", (Broken,), {"contract_exceptions": declared})())


@dataclass(frozen=True)
class GivesTooMany(Broken):
    def compress(self, tokens, state):
        return tokens


def test_who_breaks_a_promise_is_told_which_and_where() -> None:
    with pytest.raises(AssertionError) as told:
        check("compressor", "budget", GivesTooMany())
    lines = str(told.value).splitlines()
    assert "breaks the promise `budget`: As many tokens as `keep` or `keep_ratio` says" in lines[0]
    assert lines[1].startswith("  what happened: ") and "contract_compressors.py:" in lines[1]
    assert "the promise stands in contract_compressors.py:" in lines[2] and "docs/adding_a_method.md" in lines[2]
    assert "contract_exceptions" in lines[3]
