"""The promises of memories."""

import dataclasses
import typing
from typing import Any

import torch
from contract_base import QUESTION, Opener, Stream, assert_finite, assert_same
from contract_streams import (
    DIM,
    block_keys,
    frame_tokens,
    moving_features,
    moving_frame,
)

from onlooker.core.spans import Plan, Span, Tier
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.kvstore.melting import whole_counts


class MemoryStream(Stream):
    """Blocks in a pretended store: a prefix, then a block of 196 tokens every half second, now and then some text. For
    memories that hold tokens: frames of 20 tokens, and now and then some text."""

    num_long = 600

    def __init__(self, method: Any, seed: int = 0) -> None:
        super().__init__(method, seed)
        self.num_long = 300 if method.holds_tokens else self.num_long
        self.spans = [Span(0, "prefix", 12, 0.0, 0.0)]
        self.melted: torch.Tensor | None = None
        self.next_id = 1

    def input(self, number: int) -> Any:
        time_s = number * 0.5
        if self.method.holds_tokens:
            if (number + self.seed) % 8 == 7:
                return Unread(torch.arange(6), time_s, time_s, "text")
            return Unread(moving_frame(self.seed, number), time_s, time_s)
        if (number + self.seed) % 50 == 49:
            return Span(self.next_id, "text", 20, time_s, time_s)
        return Span(self.next_id, "vision", 196 - self.seed, time_s, time_s)

    def scores(self) -> torch.Tensor | None:
        if not self.method.scores_layers:
            return None
        return torch.tensor([((span.id * 37 + self.seed) % 101) / 101 for span in self.spans])

    def reread(self) -> list[Unread]:
        """What a question reads now."""
        return list(self.method.reread(QUESTION, self.state))

    def push_input(self, given: Any) -> Any:
        if self.method.holds_tokens:
            self.method.absorb(given.owned(), self.state)
            return self.reread()
        self.spans = [*self.spans, given]
        self.next_id = given.id + 1
        if self.method.indexes:
            self.method.index(given.id, block_keys(self.seed, given.id, given.num_tokens // 20), self.state)
        if count := min(self.method.num_queries, given.num_tokens):
            queries = block_keys(self.seed + 1, given.id, count).repeat_interleave(2, 1)  # two queries share a key
            before = queries.clone()
            self.method.heed(given.id, queries, self.state)
            assert torch.equal(queries, before), "queries were written into"
            queries.fill_(float("nan"))  # only a copy may be kept
        plan = self.method.plan(tuple(self.spans), self.state)
        self.check_plan(plan)
        left = [span for span in self.spans if span.id not in plan.forget]
        self.spans = [dataclasses.replace(s, tier=Tier.HOST) if s.id in plan.park else s for s in left]
        if plan.melt:
            self.melt(plan.melt)
        return plan, self.recall()

    def melt(self, named: tuple[int, ...]) -> None:
        """Two layers of two heads, each with rows of its own; spans share what is left."""
        run = [span for span in self.spans if span.id in named]
        assert tuple(span.id for span in run) == named, "neighbours melt, in their order"
        known = None if self.melted is None or int(self.melted.max()) not in named else self.melted
        before = 0 if known is None else known.shape[2]
        newest = -1 if known is None else int(known.max())
        singles = [span for span in run if span.id > newest]
        new = torch.cat([torch.full((span.num_tokens,), span.id) for span in singles]).expand(2, 2, -1)
        owners = new if known is None else torch.cat([known, new], dim=2)
        sizes = [before] * (before > 0) + [span.num_tokens for span in singles]
        generator = torch.Generator().manual_seed(1000 * self.seed + owners.shape[2] + run[-1].id)
        keys, values = torch.randn(2, 2, 2, sum(sizes), 8, generator=generator)
        given = keys.clone(), values.clone()
        index = self.method.pick(keys, values, sizes, self.state)
        assert torch.equal(given[0], keys) and torch.equal(given[1], values), "keys or values were written into"
        assert index.dtype == torch.int64 and index.shape[:2] == (2, 2), f"rows are picked as {list(index.shape)}"
        assert 0 < index.shape[2] <= sum(sizes) and (index.diff(dim=-1) > 0).all(), "rows ascend, each once"
        assert index.min() >= 0 and index.max() < sum(sizes), "rows that are not there"
        self.melted = owners.gather(2, index)
        shares = [(self.melted == span.id).sum().item() / 4 for span in run]
        counts = dict(zip(named, whole_counts(shares), strict=True))
        gone = {span.id for span, share in zip(run, shares, strict=True) if not share}
        self.spans = [
            dataclasses.replace(span, num_tokens=counts.get(span.id, span.num_tokens))
            for span in self.spans
            if span.id not in gone
        ]

    def recall(self) -> Any:
        """What a question sees: in all layers, or in each of six."""
        spans = tuple(self.spans)
        if self.method.indexes:  # blocks of few rows, as it would take long otherwise
            few = tuple(dataclasses.replace(span, num_tokens=max(1, span.num_tokens // 20)) for span in spans)
            return self.method.recall_rows(1, few, block_keys(self.seed, 7, 3)[0].repeat(2, 1, 1), self.state)
        if self.method.layered:
            return [self.method.recall_layer(layer, 6, spans, self.state) for layer in range(6)]
        return self.method.recall(spans, self.scores(), self.state)

    def check_plan(self, plan: Plan) -> None:
        tiers = {span.id: span.tier for span in self.spans}
        named = [*plan.park, *plan.forget, *plan.melt]
        assert not plan.melt or len(named) == len(plan.melt), "a plan that melts does nothing else"
        assert len(named) == len(set(named)), f"a block is named twice: {named}"
        assert set(named) <= tiers.keys(), f"there are no blocks {set(named) - tiers.keys()}"
        assert all(tiers[i] is Tier.DEVICE for i in plan.park + plan.melt), f"parked already: {plan}"

    def fork(self) -> "MemoryStream":
        twin = typing.cast(MemoryStream, super().fork())
        twin.spans = list(self.spans)
        return twin


def prefix_stays(method: Any, opened: Opener) -> None:
    """The system prompt is never parked or forgotten, and every question sees it."""
    stream = opened(method)
    for number in range(stream.num_long):
        plan, recall = stream.push(number)
        assert 0 not in plan.park and 0 not in plan.forget, "the prefix was taken away"
        for layer in recall if method.layered else [recall]:
            assert 0 in layer.blocks, "a question does not see the prefix"


def recall_is_in_order(method: Any, opened: Opener) -> None:
    """Existing blocks, ascending, each once; asking changes nothing."""
    stream = typing.cast(MemoryStream, opened(method))
    for number in range(120):
        stream.push(number)
        before = stream.state.export()
        recall = stream.recall()
        for blocks in [layer.blocks for layer in (recall if method.layered else [recall])]:
            assert list(blocks) == sorted(set(blocks)) and set(blocks) <= {s.id for s in stream.spans}
        assert_same(stream.state.export(), before, what="state after a question")


def bounded_memory(method: Any, opened: Opener) -> None:
    """A stream twice as long takes no more tokens on the device."""
    stream = typing.cast(MemoryStream, opened(method))
    peaks = [0, 0]
    for number in range(stream.num_long):
        stream.push(number)
        tokens = sum(span.num_tokens for span in stream.spans if span.tier is Tier.DEVICE)
        half = number * 2 // stream.num_long
        peaks[half] = max(peaks[half], tokens)
    # The blocks are not all of one size, so that the budget may be filled a little better later on.
    assert peaks[1] <= peaks[0] + 196, f"tokens on the device grew: {peaks}"


def memory_engagement(method: Any, opened: Opener) -> None:
    """On a long stream something is parked, melted or forgotten."""
    stream = opened(method)
    plans = [stream.push(number)[0] for number in range(stream.num_long)]
    assert any(plan.park or plan.forget or plan.melt for plan in plans)


def _check_reread(stream: MemoryStream, now_s: float) -> int:
    """What a question would read now is good; how many tokens that is."""
    before = stream.state.export()
    read = stream.reread()
    assert_same(stream.state.export(), before, what="state after a question")
    places = [one.at_s for one in read]
    assert places == sorted(places), f"not in the order of their times: {places}"
    for one in read:
        assert 0 <= one.start_s <= one.end_s <= now_s and one.start_s <= one.at_s <= one.end_s, "of another time"
        if isinstance(one.content, VisualTokens):
            assert one.kind == "vision" and len(one.content), "a frame without tokens"
            rows, cols = one.content.grid
            assert ((one.content.row < rows) & (one.content.col < cols)).all(), "outside its grid"
            assert_finite(one.content)
        else:
            assert one.kind != "vision" and one.content.dtype == torch.int64, "a note is token ids"
    return sum(len(one.content) for one in read)


def reread_is_in_order(method: Any, opened: Opener) -> None:
    """Blocks of what was seen, in the order of their times, from the first frame on; asking changes nothing."""
    stream = typing.cast(MemoryStream, opened(method))
    for number in range(120):
        stream.push(number)
        if number < 10 or number % 7 == 0:
            assert _check_reread(stream, number * 0.5) > 0, "a question reads nothing"


def newest_is_read(method: Any, opened: Opener) -> None:
    """A question is about now: something of the newest frame is read."""
    stream = typing.cast(MemoryStream, opened(method))
    for number in range(120):
        stream.push(number)
        assert any(one.end_s == number * 0.5 for one in stream.reread()), f"frame {number} is not read"


def bounded_reading(method: Any, opened: Opener) -> None:
    """A question about a stream twice as long reads no more tokens, and far fewer than were seen."""
    stream = typing.cast(MemoryStream, opened(method))
    peaks = [0, 0]
    for number in range(stream.num_long):
        stream.push(number)
        half = number * 2 // stream.num_long
        peaks[half] = max(peaks[half], _check_reread(stream, number * 0.5) if number % 7 == 0 else 0)
    assert peaks[1] <= 1.25 * peaks[0], f"tokens read grew: {peaks}"
    assert peaks[1] < stream.num_long * 20 / 2


def odd_frames(method: Any, opened: Opener) -> None:
    """Constant, black, one-token and bfloat16 frames, and frames of changing size, give finite tokens."""
    if method.takes_pictures:
        return  # it does not look
    stream = typing.cast(MemoryStream, opened(method))
    still = moving_features(0, 0, 20, DIM)
    kinds = [still, torch.zeros(20, DIM), torch.ones(20, DIM), still[:1], torch.zeros(1, DIM), still]
    for dtype in (torch.float32, torch.bfloat16):
        stream.state = method.new_state()
        for number in range(10 * len(kinds)):
            features = kinds[number // 10].to(dtype)
            tokens = frame_tokens(features, number, (4, 5) if len(features) == 20 else (1, 1))
            method.absorb(Unread(tokens, number * 0.5, number * 0.5).owned(), stream.state)
            if number % 5 not in (0, 4):
                continue
            assert _check_reread(stream, number * 0.5)
            for one in stream.reread():
                assert typing.cast(VisualTokens, one.content).features.dtype == dtype


BLOCKS = (prefix_stays, recall_is_in_order, bounded_memory, memory_engagement)
TOKENS = (reread_is_in_order, newest_is_read, bounded_reading, odd_frames)
MEMORY = (*BLOCKS, *TOKENS)
