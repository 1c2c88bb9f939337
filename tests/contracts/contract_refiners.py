"""The promises of refiners."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from contract_base import NUM, QUESTION, Opener, Stream, assert_finite, assert_same
from contract_streams import (
    look,
    moving_frame,
    odd_looks,
)

from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread


class RefinerStream(Stream):
    """Looks of a question at recalled frames and a note, or frames that a memory of tokens recalled: one after the
    other, though a refiner remembers nothing."""

    def input(self, number: int) -> Any:
        recalled = [Unread(moving_frame(self.seed, number + n), n * 0.5, n * 0.5) for n in range(4)]
        return look(self.seed, number), recalled

    def push_input(self, given: Any) -> Any:
        seen, recalled = given
        if "rows" in self.method.takes:
            return self.method.refine_rows(seen)
        return self.method.refine(recalled, QUESTION)


def refiner_shape(method: Any, opened: Opener) -> None:
    """A mask over the rows, one for all heads or one for each, on every layer that it asks for."""
    stream = opened(method)
    for number in range(NUM):
        seen = stream.input(number)[0]
        mask = method.refine_rows(seen)
        assert mask.dtype == torch.bool and mask.shape in ((len(seen.block),), (len(seen.keys), len(seen.block)))
    for num_layers in (1, 2, 6, 28):
        layer = method.layer(num_layers)
        assert layer is None or 0 <= layer < num_layers, f"layer {layer} of {num_layers}"
        assert (layer is None) == ("rows" not in method.takes), "it says that it takes rows, and looks at none"


def refiner_budget(method: Any, opened: Opener) -> None:
    """Never more rows of video than `tokens` says, and all of them with a budget for all."""
    if "rows" not in method.takes:
        return
    stream = opened(method)
    for number in range(4):
        seen = stream.input(number)[0]
        rows = int(seen.vision.sum())
        for tokens in (1, 7, rows):
            left = int((dataclasses.replace(method, tokens=tokens, ratio=None).refine_rows(seen) & seen.vision).sum())
            assert 1 <= left <= tokens, f"{left} rows for a budget of {tokens}"
        whole = dataclasses.replace(method, tokens=None, ratio=1.0).refine_rows(seen)
        assert bool((whole | ~seen.vision).all()), "a budget for all of them leaves rows out"


def refiner_engagement(method: Any, opened: Opener) -> None:
    """Something is left out, and what is depends on the question."""
    stream = opened(method)
    if "rows" in method.takes:
        assert not all(bool(stream.push(number).all()) for number in range(NUM)), "no row is left out"
    if "tokens" in method.takes:
        recalled = stream.input(0)[1]
        read = method.refine(recalled, QUESTION)
        assert _num_visual(read) < _num_visual(recalled), "no token is left out"


def refiner_tokens(method: Any, opened: Opener) -> None:
    """What is read of recalled frames: in order, notes as they were, never more tokens, whatever the frames are."""
    if "tokens" not in method.takes:
        return
    note = Unread(torch.arange(6), 1.2, 1.2, "text")
    stream = opened(method)
    for number in range(4):
        frames = stream.input(number)[1]
        pruned = [dataclasses.replace(one, content=one.content.select(torch.arange(3, 9))) for one in frames]
        still = [dataclasses.replace(one, content=frames[0].content) for one in frames]
        half = [dataclasses.replace(one, content=_in_half(one.content)) for one in frames]
        for some in (frames, pruned, still, half, frames[:1], [frames[0], *pruned[1:]]):
            recalled = sorted([*some, note], key=lambda one: one.at_s)
            before = copy.deepcopy(recalled)
            read = list(method.refine(recalled, QUESTION))
            assert_same(recalled, before, what="what was recalled")
            assert sum(one is note for one in read) == 1, "a note was lost, or made anew"
            assert [one.at_s for one in read] == sorted(one.at_s for one in read), "not in the order of times"
            assert 1 <= _num_visual(read) <= _num_visual(recalled)
            for one in read:
                if isinstance(one.content, VisualTokens):
                    assert one.content.extras.keys() == some[0].content.extras.keys()
                    assert one.content.features.dtype == some[0].content.features.dtype and len(one.content)
                    assert_finite(one.content)
    assert list(method.refine([note], QUESTION)) == [note] and not list(method.refine([], QUESTION))


def _num_visual(recalled: Sequence[Unread]) -> int:
    return sum(len(one.content) for one in recalled if isinstance(one.content, VisualTokens))


def _in_half(tokens: VisualTokens) -> VisualTokens:
    return dataclasses.replace(tokens, features=tokens.features.to(torch.bfloat16))


def refiner_odd_looks(method: Any, opened: Opener) -> None:
    """One row, no video, equal rows, one word, and bfloat16."""
    for given in odd_looks():
        mask = method.refine_rows(given)
        assert mask.dtype == torch.bool and mask.shape[-1] == len(given.block)
        if bool(given.vision.any()):
            assert bool((mask & given.vision).any()), "nothing is left of the video"


REFINER = (refiner_shape, refiner_budget, refiner_engagement, refiner_odd_looks, refiner_tokens)
