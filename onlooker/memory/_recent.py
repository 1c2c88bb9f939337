"""The blocks that are neither prefix nor gone, counted as they come, so that a plan costs only what changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState


@dataclass
class WindowState(StreamState):
    """Counts over the blocks in the window of one stream."""

    seen: int = -1
    """Id of the last block counted."""
    num_blocks: int = 0
    """Blocks in the window, the prefix not among them."""
    num_tokens: int = 0
    """Tokens of those blocks."""
    num_parked: int = 0
    """Blocks between the prefix and the window."""


def count_new(spans: Sequence[Span], state: WindowState) -> int:
    """Count the blocks that have come since the last call; the place of the window's first block in `spans`.

    Raises `InputError` when the counts cannot be those of these blocks.
    """
    place = len(spans)
    while place and spans[place - 1].id > state.seen:
        place -= 1
        if spans[place].kind != "prefix":
            state.num_blocks += 1
            state.num_tokens += spans[place].num_tokens
    if spans:
        state.seen = spans[-1].id
    if not 0 <= state.num_blocks <= len(spans):  # a saved state that was changed, or one of another stream
        raise InputError(
            "a memory's counts do not fit its blocks",
            given=f"{state.num_blocks} blocks in the window, {len(spans)} in all",
            do="load what was saved, unchanged",
        )
    return len(spans) - state.num_blocks


def oldest_beyond(
    spans: Sequence[Span], first: int, state: WindowState, window_tokens: int | None, window_blocks: int | None
) -> tuple[int, ...]:
    """Ids of the oldest window blocks that have to leave so that both bounds hold; at least the newest block stays.

    `first` is the place of the window's first block. `state` is updated.
    """
    leaving = []
    while state.num_blocks > 1 and (
        (window_tokens is not None and state.num_tokens > window_tokens)
        or (window_blocks is not None and state.num_blocks > window_blocks)
    ):
        span = spans[first + len(leaving)]
        leaving.append(span.id)
        state.num_blocks -= 1
        state.num_tokens -= span.num_tokens
    return tuple(leaving)


@dataclass
class ThinState(WindowState):
    """Besides, how far the past of one stream has been thinned out."""

    stride: int = 1
    """Of the blocks up to `swept` every so many are left."""
    place: int = 0
    """Blocks with a smaller id were looked at with the next stride."""
    swept: int = 0


def park_and_forget(
    spans: Sequence[Span], state: WindowState, window_tokens: int, max_parked: int | None, first: int
) -> Plan:
    """Park what leaves a window of so many tokens; of what is parked beyond a bound forget the oldest, but never the
    first ones, or thin it out if the state is one for that."""
    place = count_new(spans, state)
    park = oldest_beyond(spans, place, state, window_tokens, None)
    state.num_parked += len(park)
    if max_parked is None or state.num_parked <= max_parked:
        return Plan(park=park)
    surplus = state.num_parked - max_parked
    state.num_parked -= surplus
    start = prefix_length(spans) + first
    if isinstance(state, ThinState):
        forget = thinned(state, spans[start].id, spans[place + len(park) - 1].id, surplus)
    else:
        forget = tuple(span.id for span in spans[start : start + surplus])
    # A block may leave the window and be one too many at once.
    return Plan(park=tuple(block for block in park if block not in forget), forget=forget)


def thinned(state: ThinState, start: int, newest: int, count: int) -> tuple[int, ...]:
    """Ids of so many of the parked blocks from `start` to `newest` that go so that those that stay lie about evenly:
    oldest first, every second of what an earlier sweep left, and of what came since all but every so many. A sweep that
    has come to the newest begins anew, with twice the stride. `state` is updated."""
    gone: list[int] = []
    while len(gone) < count:
        state.place = max(state.place, start)
        if state.place < state.swept:  # only multiples of the stride are left here: every second one goes
            step = (state.stride - state.place - 1) % (2 * state.stride)
            block = state.place + step
            block = block if block < state.swept else state.swept
        else:
            block = state.place
        if block > newest:
            state.stride, state.place, state.swept = 2 * state.stride, start, newest + 1
            continue
        state.place = block + 1
        if block < state.swept or (block + 1) % (2 * state.stride):
            gone.append(block)
    return tuple(sorted(gone))


def levelled(scores: Tensor, spans: Sequence[Span]) -> Tensor:
    """Scores float32 `[spans]` without their trend over time, as if all blocks were as new as the last one.

    The likeness of frames to a question rises along a stream (MemStream, arXiv 2602.18434), so that recall favours late
    ones. The trend is the straight line of least squares over the blocks' times: what stands out stays.
    """
    if len(spans) < 3:
        return scores
    times = torch.tensor([span.start_s for span in spans], dtype=torch.float64)
    gaps, values = times - times.mean(), scores.double().cpu()
    spread = float(gaps @ gaps)
    slope = float(gaps @ (values - values.mean())) / spread if spread else 0.0
    return (values + slope * (times[-1] - times)).to(scores)


def highest(scores: Tensor, count: int) -> list[int]:
    """Places of so many highest scores `[spans]`, ascending; of equal ones the older, on every device. Does not sort
    all of them: a day of stream has many blocks, and every layer asks."""
    if count >= len(scores):
        return list(range(len(scores)))
    if count < 1:
        return []
    least = scores.topk(count).values[-1]
    chosen = scores > least
    level = (scores == least).nonzero()[: count - int(chosen.sum())]
    chosen[level] = True
    return chosen.nonzero().flatten().tolist()


def prefix_length(spans: Sequence[Span]) -> int:
    """1 if the stream begins with a prefix, else 0."""
    return int(bool(spans) and spans[0].kind == "prefix")
