"""Compressors in a row: each sees what the former let through."""

import dataclasses
from dataclasses import dataclass, field

import pytest
import torch

from onlooker.compress import Chain, Identity, MeanPool, STCPruner, Uniform
from onlooker.core import registry
from onlooker.core.contracts import Compressor
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join


def frame(seed: int, number: int) -> VisualTokens:
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(100 * seed + number))
    return VisualTokens.of_frame(features, (4, 5), number, float(number))


@dataclass
class Seen(StreamState):
    frames: int = 0


@dataclass(frozen=True)
class EveryOther(Compressor):
    """Keeps nothing of every second frame."""

    needs = frozenset({"saliency"})

    def new_state(self) -> Seen:
        return Seen()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        assert isinstance(state, Seen)
        state.frames += 1
        return tokens if state.frames % 2 else tokens.select(torch.arange(0))


@dataclass
class Held(StreamState):
    features: list[torch.Tensor] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Late(Compressor):
    """Gives out so many frames together, whole, when the last of them has come."""

    frames: int = 3

    @property
    def lookahead(self) -> int:
        return self.frames - 1

    def new_state(self) -> Held:
        return Held()

    def num_held(self, state: StreamState) -> int:
        assert isinstance(state, Held)
        return len(state.frames)

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        assert isinstance(state, Held)
        state.features.append(tokens.features)
        state.frames.append(int(tokens.frame[0]))
        if len(state.frames) < self.frames:
            return tokens.select(torch.arange(0))
        out = self.flush(state)
        assert out is not None
        return out

    def flush(self, state: StreamState) -> VisualTokens | None:
        assert isinstance(state, Held)
        held, state.features, state.frames = zip(state.features, state.frames, strict=True), [], []
        parts = [VisualTokens.of_frame(f, (4, 5), n, float(n)) if len(f) == 20 else thin(f, n) for f, n in held]
        return join(parts) if parts else None


def thin(features: torch.Tensor, number: int) -> VisualTokens:
    return dataclasses.replace(frame(0, number).select(torch.arange(len(features))), features=features)


@dataclass(frozen=True)
class Drops(EveryOther):
    """Keeps nothing but of every fourth frame."""

    needs = frozenset()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        assert isinstance(state, Seen)
        state.frames += 1
        return tokens if state.frames % 4 == 1 else tokens.select(torch.arange(0))


def outcome(chain: Chain, count: int) -> tuple[list[tuple[list[int], int]], list[int]]:
    """Of every frame which frames were given out and how many are held; and what a flush gives out in the end."""
    state, told = chain.new_state(), []
    for number in range(count):
        out = chain.compress(frame(0, number), state)
        told.append(([n for n, _ in out.by_frame()], chain.num_held(state)))
    rest = chain.flush(state)
    assert chain.num_held(state) == 0 and chain.flush(state) is None
    return told, [] if rest is None else [n for n, _ in rest.by_frame()]


def test_a_late_link_gives_its_frames_to_the_next_one_by_one() -> None:
    told, rest = outcome(Chain((Late(3), STCPruner(keep=2))), 5)
    assert told == [([], 1), ([], 2), ([0, 1, 2], 0), ([], 1), ([], 2)] and rest == [3, 4]
    chain = Chain((STCPruner(keep=4), Late(2), STCPruner(keep=2), Late(2)))
    assert chain.lookahead == 2
    told, rest = outcome(chain, 5)
    assert told == [([], 1), ([0, 1], 0), ([], 1), ([2, 3], 0), ([], 1)] and rest == [4]


def test_what_late_links_hold_together_is_given_out_in_order() -> None:
    told, rest = outcome(Chain((Late(2), Late(3))), 7)
    assert told == [([], 1), ([], 2), ([], 3), ([0, 1, 2], 1), ([], 2), ([3, 4, 5], 0), ([], 1)] and rest == [6]


def test_a_link_is_flushed_when_the_frames_that_it_waits_for_are_left_out() -> None:
    told, rest = outcome(Chain((Drops(), Late(3))), 9)
    assert told[:4] == [([], 1), ([], 2), ([0], 0), ([], 0)] and told[4:8] == [([], 1), ([], 2), ([4], 0), ([], 0)]
    assert rest == [8]


def test_a_chain_is_its_links_one_after_the_other() -> None:
    links = (STCPruner(keep=12), Uniform(keep=6), STCPruner(keep=3, score="gaussian"))
    chain = Chain(links)
    state, states = chain.new_state(), [link.new_state() for link in links]
    for number in range(6):
        expected = frame(0, number)
        for link, own in zip(links, states, strict=True):
            expected = link.compress(expected, own)
        got = chain.compress(frame(0, number), state)
        assert torch.equal(got.slot, expected.slot) and torch.equal(got.features, expected.features)
    assert state.num_bytes() == sum(own.num_bytes() for own in states) > 0


def test_links_behind_do_not_see_a_frame_that_was_left_out() -> None:
    chain = Chain((EveryOther(), STCPruner(keep=3)))
    states = [chain.new_state() for _ in range(2)]
    chain.compress(frame(1, 0), states[1])  # the streams are one frame apart, so that one of them is always empty
    for number in range(4):
        kept = chain.compress_streams([frame(0, number), frame(1, number + 1)], states)
        assert [len(tokens) for tokens in kept] == ([3, 0] if number % 2 == 0 else [0, 3])
    assert [int(state.links[1].seen) for state in states] == [2, 3]


def test_the_last_link_that_can_does_with_less() -> None:
    chain = Chain((Uniform(keep=12), STCPruner(keep=6), MeanPool()))
    assert chain.less() == Chain((Uniform(keep=12), STCPruner(keep=3), MeanPool()))
    assert Chain((Identity(), MeanPool())).less() is None


def test_a_chain_needs_what_its_links_need() -> None:
    chain = Chain((STCPruner(), EveryOther()))
    assert chain.needs == {"saliency"}

    class Model:
        offers: frozenset[str] = frozenset()
        spec = type("Spec", (), {"name": "a model"})

    with pytest.raises(ModelError, match="EveryOther needs saliency, which a model does not offer"):
        chain.check(Model())  # pyright: ignore[reportArgumentType]


def test_chains_of_chains_are_flat_and_one_link_is_none() -> None:
    assert Chain((Chain((Identity(), Uniform())), MeanPool())) == Chain((Identity(), Uniform(), MeanPool()))
    for links in ((), (Identity(),)):
        with pytest.raises(InputError, match="a chain has two compressors or more"):
            Chain(links)
    assert registry.make("compressor", "identity+uniform").new_state().links == [StreamState(), StreamState()]
