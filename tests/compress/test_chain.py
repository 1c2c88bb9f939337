"""Compressors in a row: each sees what the former let through."""

from dataclasses import dataclass

import pytest
import torch

from onlooker.compress import Chain, Identity, MeanPool, STCPruner, Uniform
from onlooker.core import registry
from onlooker.core.contracts import Compressor
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


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
    assert [state.links[1].num_frames for state in states] == [2, 3]


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
