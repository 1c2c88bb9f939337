"""The promises every method makes, as functions that raise AssertionError when a method breaks one.

`points(kind)` lists them; the tests run each over every method the registry finds. A method to which a point does not
apply says so in its class: `contract_exceptions: ClassVar[dict[str, str]] = {"point": "reason"}`.
"""

import copy
import dataclasses
import itertools
import json
import math
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract_codecs import CODEC, again, states
from contract_streams import (
    DIM,
    block_keys,
    flat_moment,
    frame_tokens,
    look,
    moment,
    moving_features,
    moving_frame,
    odd_looks,
    picture,
    toy_tower,
)

from onlooker.compress import num_kept
from onlooker.core import registry
from onlooker.core.codec import CodecRecord
from onlooker.core.contracts import Decision, Encoded, MemoryView, Moment, Outcome, Thought, Waiting
from onlooker.core.errors import InputError
from onlooker.core.events import Noted
from onlooker.core.frame import Frame
from onlooker.core.spans import Plan, Span, Tier
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join
from onlooker.core.unread import Unread
from onlooker.kvstore.melting import whole_counts
from onlooker.respond import Rule

# ------------------------------------------------------------------------------------------------------- comparing


def assert_same(one: Any, other: Any, tolerance: float = 0.0, what: str = "output") -> None:
    """Equal in structure and, within `tolerance`, in every number."""
    assert type(one) is type(other), f"{what}: {type(one)} and {type(other)}"
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape and one.dtype == other.dtype, f"{what}: {one.shape} and {other.shape}"
        equal = torch.equal(one, other) if not tolerance else torch.allclose(one, other, rtol=0, atol=tolerance)
        assert equal, f"{what} differs by up to {(one.double() - other.double()).abs().max():.3g}"
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other), f"{what} differs"
    elif dataclasses.is_dataclass(one):
        for f in dataclasses.fields(one):
            assert_same(getattr(one, f.name), getattr(other, f.name), tolerance, f"{what}.{f.name}")
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), f"{what}: {list(one)} and {list(other)}"
        for key in one:
            assert_same(one[key], other[key], tolerance, f"{what}[{key}]")
    elif isinstance(one, Sequence) and not isinstance(one, str):
        assert len(one) == len(other), f"{what}: {len(one)} and {len(other)} members"
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, tolerance, f"{what}[{i}]")
    else:
        assert one == other, f"{what}: {one!r} and {other!r}"


def assert_finite(value: Any) -> None:
    """No infinity and no NaN in any tensor of an output."""
    if isinstance(value, torch.Tensor):
        assert torch.isfinite(value.float()).all()
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            assert_finite(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            assert_finite(item)
    elif isinstance(value, list):
        for item in value:
            assert_finite(item)


# --------------------------------------------------------------------------------------------- how a stream is run


class Stream:
    """One stream of a kind of method: its state, and `push` with the number of a frame of clip `seed`."""

    batch_tolerance = 0.0
    num_long = 220

    def __init__(self, method: Any, seed: int = 0) -> None:
        self.method, self.seed = method, seed
        self.state: StreamState = method.new_state()

    def push(self, number: int) -> Any:
        """The output for frame `number`."""
        return self.push_input(self.input(number))

    def input(self, number: int) -> Any:
        raise NotImplementedError

    def push_input(self, given: Any) -> Any:
        raise NotImplementedError

    def push_together(self, others: Sequence["Stream"], numbers: Sequence[int]) -> list[Any]:
        """One frame of each stream in one call, where the kind has such a call."""
        return [stream.push(number) for stream, number in zip(others, numbers, strict=True)]

    def fork(self) -> "Stream":
        twin = copy.copy(self)
        twin.state = self.state.fork()
        return twin


class CompressorStream(Stream):
    """Frames of 20 tokens through a compressor."""

    def input(self, number: int) -> VisualTokens:
        return moving_frame(self.seed, number)

    def push_input(self, given: VisualTokens) -> VisualTokens:
        return self.method.compress(given, self.state)

    def push_together(self, others: Sequence[Stream], numbers: Sequence[int]) -> list[Any]:
        batch = [stream.input(number) for stream, number in zip(others, numbers, strict=True)]
        return self.method.compress_streams(batch, [stream.state for stream in others])


class EncoderStream(Stream):
    """Frames of 13 tokens (one of them for the whole frame) through a tower of four layers."""

    # The same row may be rounded differently in a larger matrix product; in float64 no choice hangs on that.
    batch_tolerance = 1e-9
    tower = toy_tower()

    def input(self, number: int) -> torch.Tensor:
        return moving_features(self.seed, number, self.tower.num_tokens, self.tower.dim)[None].double()

    def push_input(self, given: torch.Tensor) -> Encoded:
        return self.method.encode(self.tower, given, [self.state])

    def push_together(self, others: Sequence[Stream], numbers: Sequence[int]) -> list[Any]:
        hidden = torch.cat([stream.input(number) for stream, number in zip(others, numbers, strict=True)])
        out: Encoded = self.method.encode(self.tower, hidden, [stream.state for stream in others])
        split = []
        for b in range(len(others)):
            taps = {number: tap[b : b + 1] for number, tap in out.taps.items()}
            recomputed = None if out.recomputed is None else out.recomputed[b : b + 1]
            split.append(Encoded(out.hidden[b : b + 1], taps, recomputed, out.refreshed[b : b + 1]))
        return split


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


class ResponseStream(Stream):
    """Moments of a quiet stream with bursts."""

    num_long = 300
    said_s: float | None = None

    def input(self, number: int) -> Moment:
        return only_needed(moment(self.seed, number), self.method.needs)

    def push_input(self, given: Moment) -> Decision:
        decision = self.method.decide(dataclasses.replace(given, said_s=self.said_s), self.state)
        if decision.speaks:
            self.said_s = given.time_s
        return decision


SIGNALS = {f.name for f in dataclasses.fields(Moment)} - {"time_s", "kept_ratio", "recomputed_ratio", "said_s"}


def only_needed(given: Moment, needs: frozenset[str]) -> Moment:
    """The moment with the signals that a policy has asked for, and no others."""
    assert needs <= SIGNALS, f"there are no signals {sorted(needs - SIGNALS)}"
    shown = needs | ({"silence_is_likeliest"} if "silence_probability" in needs else set())
    return dataclasses.replace(given, **dict.fromkeys(SIGNALS - shown))


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


class CodecStream(Stream):
    """Blocks of different sizes through a codec and back, one after the other."""

    def input(self, number: int) -> Any:
        return states(100 * self.seed + number, 1 + number % 7)

    def push_input(self, given: Any) -> Any:
        return again(self.method, *given)


class ScheduleStream(Stream):
    """A scheduler whose streams come and go: some wait with a frame each time, and room is for two."""

    num_long = 400

    def __init__(self, method: Any, seed: int = 0) -> None:
        super().__init__(method, seed)
        self.since: dict[int, float] = {}

    def input(self, number: int) -> list[Waiting]:
        first = number // 25
        return [
            Waiting(n, self.since.get(n, 0.0), Frame(picture(self.seed + n, number), float(number)))
            for n in range(first, first + 6)
            if (n * 7 + number + self.seed) % 5
        ]

    def push_input(self, given: list[Waiting]) -> list[int]:
        now_s = given[0].frame.time_s
        if now_s % 25 == 0 and now_s:
            self.method.left(int(now_s) // 25 - 1, self.state)
            self.since.pop(int(now_s) // 25 - 1, None)
        places = self.method.choose(given, 2, now_s, self.state)
        self.since |= {given[place].stream: now_s for place in places}
        return [given[place].stream for place in places]

    def fork(self) -> "ScheduleStream":
        twin = typing.cast(ScheduleStream, super().fork())
        twin.since = dict(self.since)
        return twin


class GateStream(Stream):
    """Small pictures of a stream that stands still for a while, now and then."""

    num_long = 300
    seen_s: float | None = None

    def input(self, number: int) -> Frame:
        # Streams of an odd seed come with what a video's encoder says; most sources say nothing.
        moves = number % 20 < 10
        codec = CodecRecord("P", 1, 0, 9000 if moves else 60, None, None) if self.seed % 2 else None
        return Frame(picture(self.seed, number), number * 0.5, codec=codec)

    def push_input(self, given: Frame) -> Any:
        memory = MemoryView((Span(0, "prefix", 12, 0.0, 0.0),), self.seen_s)
        verdict = self.method.look(given, memory, self.state)
        if isinstance(verdict, np.ndarray) or verdict:
            self.seen_s = given.time_s
        return verdict


class ThinkStream(Stream):
    """Moments of a quiet stream with bursts, after each of which a thought may be due; it says what it is about."""

    num_long = 1600

    def __init__(self, method: Any, seed: int = 0) -> None:
        super().__init__(method, seed)
        self.notes: list[Noted] = []

    def input(self, number: int) -> Moment:
        return dataclasses.replace(only_needed(moment(self.seed, number), frozenset()), time_s=number * 5.0)

    def push_input(self, given: Moment) -> Thought | None:
        thought = self.method.think(given, self.notes[-64:], self.state)
        if thought is not None:
            note = Noted(given.time_s, self.method.write(thought, f"{given.kept_ratio:.3f}"), "thought")
            self.notes.append(note)
            if self.method.hidden:
                self.method.keep(note, self.state)
        return thought

    def fork(self) -> "ThinkStream":
        twin = typing.cast(ThinkStream, super().fork())
        twin.notes = list(self.notes)
        return twin


STREAMS: dict[str, type[Stream]] = {
    "codec": CodecStream,
    "gate": GateStream,
    "schedule": ScheduleStream,
    "refiner": RefinerStream,
    "compressor": CompressorStream,
    "encoder": EncoderStream,
    "memory": MemoryStream,
    "response": ResponseStream,
    "think": ThinkStream,
}


def run(stream: Stream, numbers: Sequence[int]) -> list[Any]:
    """Outputs as they were when they were made."""
    return [copy.deepcopy(stream.push(number)) for number in numbers]


Opener = Callable[..., Stream]
NUM = 10
QUESTION = torch.ones(3, DIM)

# --------------------------------------------------------------------------------- points for methods of every kind


def settings_are_frozen(method: Any, opened: Opener) -> None:
    """Settings cannot change, compare by value and can be a key."""
    assert dataclasses.is_dataclass(method) and method.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hash(method) == hash(dataclasses.replace(method)) and method == dataclasses.replace(method)
    before = dict(vars(method))
    run(opened(method), range(4))
    assert vars(method) == before, "settings changed, or something was stored beside them"


def settings_are_documented(method: Any, opened: Opener) -> None:
    """The file has a caption, and every setting a default and one line of help."""
    assert registry.caption(type(method)), "the file needs a docstring"
    for f in dataclasses.fields(method):
        has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        assert has_default, f"{f.name} needs a default"
    for setting in registry.settings(type(method)):
        assert setting.help.strip(), f"{setting.name} needs a line of help under it"


def description_round_trip(method: Any, opened: Opener) -> None:
    """A method can be written as text and made from it again."""
    kind = next(kind for kind, stream in STREAMS.items() if isinstance(opened(method), stream))
    assert registry.make(kind, registry.describe(method)) == method


def emission_is_final(method: Any, opened: Opener) -> None:
    """What was given out for a frame does not depend on later frames, and is not changed afterwards."""
    one, other = opened(method), opened(method)
    kept = [one.push(number) for number in range(NUM)]
    then = copy.deepcopy(kept)
    early = run(other, range(NUM))
    run(one, range(NUM, 2 * NUM))
    run(other, range(5 * NUM, 7 * NUM))
    assert_same(kept, then, what="earlier output")
    assert_same(early, then)


def determinism(method: Any, opened: Opener) -> None:
    """Two runs are alike, whatever the global random numbers do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = run(opened(method), range(NUM))
        torch.manual_seed(2)
        assert_same(run(opened(method), range(NUM)), one)


def new_state_is_a_reset(method: Any, opened: Opener) -> None:
    """A stream that was watched before leaves no trace in the next."""
    run(opened(method, seed=0), range(NUM))
    after_one = run(opened(method, seed=1), range(NUM))
    run(opened(method, seed=2), range(3))
    assert_same(run(opened(method, seed=1), range(NUM)), after_one)


def isolation(method: Any, opened: Opener) -> None:
    """Two interleaved streams are as two watched apart."""
    apart = [run(opened(method, seed=seed), range(NUM)) for seed in (0, 1)]
    streams = [opened(method, seed=seed) for seed in (0, 1)]
    together = [[copy.deepcopy(s.push(number)) for s in streams] for number in range(NUM)]
    for b in (0, 1):
        assert_same([row[b] for row in together], apart[b], what=f"stream {b}")


def batching(method: Any, opened: Opener) -> None:
    """Streams of different age in one call are as one by one."""
    starts = (0, 2, 5)
    apart = [run(opened(method, seed=seed), range(NUM)) for seed in range(3)]
    streams = [opened(method, seed=seed) for seed in range(3)]
    for clock in range(NUM + 5):
        ready = [b for b in range(3) if 0 <= clock - starts[b] < NUM]
        outs = streams[0].push_together([streams[b] for b in ready], [clock - starts[b] for b in ready])
        assert len(outs) == len(ready)
        for b, out in zip(ready, outs, strict=True):
            number = clock - starts[b]
            assert_same(out, apart[b][number], streams[0].batch_tolerance, f"stream {b}, frame {number}")


def inputs_are_left_alone(method: Any, opened: Opener) -> None:
    """A method neither writes into its input nor relies on it later: the caller may use the buffer again."""
    expected = run(opened(method), range(NUM))
    stream = opened(method)
    for number in range(NUM):
        given = stream.input(number)
        before = copy.deepcopy(given)
        out = copy.deepcopy(stream.push_input(given))
        assert_same(given, before, what="input")
        assert_same(out, expected[number])
        given = given.content if isinstance(given, Unread) else given
        if isinstance(given, Frame):
            given.image.fill(7)
        arrays = isinstance(given, VisualTokens)
        for tensor in (given.features, *given.extras.values(), *given.whole.values()) if arrays else (given,):
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(7)


def bounded_state(method: Any, opened: Opener) -> None:
    """A stream twice as long is remembered in no more bytes."""
    stream = opened(method)
    half = stream.num_long // 2
    peaks = [[0, 0], [0, 0]]
    for number in range(stream.num_long):
        stream.push(number)
        if number % 5 and number + 1 not in (half, stream.num_long):
            continue
        tensors, skeleton = stream.state.export()
        assert stream.state.num_bytes() == sum(t.numel() * t.element_size() for t in tensors.values())
        peak = peaks[number >= half]
        peak[:] = max(peak[0], stream.state.num_bytes()), max(peak[1], len(json.dumps(skeleton)))
    # How many of the frames that a memory holds are whole ones varies with what is seen.
    slack = 1.1 if getattr(method, "holds_tokens", False) else 1.0
    assert peaks[1][0] <= slack * peaks[0][0], f"tensor bytes grew: {peaks}"
    # Counters get longer as text; anything else that grows with the stream at least doubles.
    assert peaks[1][1] <= 1.25 * peaks[0][1] + 16, f"the state grew: {peaks}"


def state_is_whole(method: Any, opened: Opener) -> None:
    """A state is a StreamState all of whose content is in its fields."""
    stream = opened(method)
    run(stream, range(4))
    assert isinstance(stream.state, StreamState)
    assert vars(stream.state).keys() == {f.name for f in dataclasses.fields(stream.state)}, "forgot @dataclass?"
    assert stream.state is not method.new_state()


def fork_is_independent(method: Any, opened: Opener) -> None:
    """After a fork both go their own way."""
    one, two = list(range(6)) + list(range(20, 26)), list(range(6)) + list(range(40, 46))
    expected = run(opened(method), one), run(opened(method), two)
    stream = opened(method)
    run(stream, range(6))
    twin = stream.fork()
    for a, b, left, right in zip(one[6:], two[6:], expected[0][6:], expected[1][6:], strict=True):
        assert_same(stream.push(a), left, what="original")
        assert_same(twin.push(b), right, what="fork")


def saved_state_goes_on(method: Any, opened: Opener) -> None:
    """A state written out, as JSON and tensors, and read back goes on as if nothing had happened."""
    expected = run(opened(method), range(12))
    stream = opened(method)
    run(stream, range(6))
    tensors, skeleton = stream.state.export()
    text = json.dumps(skeleton)
    twin = stream.fork()
    twin.state = method.new_state()
    run(stream, range(30, 33))  # what the original sees meanwhile must not reach the copy
    twin.state.load(tensors, json.loads(text))
    assert_same(run(twin, range(6, 12)), expected[6:])


COMMON = (
    settings_are_frozen,
    settings_are_documented,
    description_round_trip,
    emission_is_final,
    determinism,
    new_state_is_a_reset,
    isolation,
    batching,
    inputs_are_left_alone,
    bounded_state,
    state_is_whole,
    fork_is_independent,
    saved_state_goes_on,
)

# -------------------------------------------------------------------------------------------- points for compressors


class _Emitted:
    """What a compressor gives out of one stream, checked against what it was given."""

    def __init__(self, method: Any, state: StreamState) -> None:
        self.method, self.state = method, state
        self.given: dict[int, VisualTokens] = {}
        self.parts: list[VisualTokens] = []
        self._last = -1
        """Newest frame that is given out."""

    def push(self, given: VisualTokens) -> VisualTokens:
        newest = int(given.frame[0])
        self.given[newest] = given
        out = self.method.compress(given, self.state)
        held = self.method.num_held(self.state)
        assert 0 <= held <= self.method.lookahead, f"{held} frames are held, lookahead {self.method.lookahead}"
        self._take(out, newest - held)
        return out

    def flush(self) -> None:
        before = self.method.num_held(self.state)
        out = self.method.flush(self.state)
        assert self.method.num_held(self.state) == 0, "something is held after a flush"
        assert before or out is None or not len(out), "a flush gives out what was not held"
        if out is not None:
            self._take(out, max(self.given))

    def _take(self, out: VisualTokens, last: int) -> None:
        frames = out.frame.tolist()
        assert frames == sorted(frames), f"frames are not in order: {frames}"
        assert all(self._last < n <= last for n in frames), f"frames {frames}, where {self._last + 1} to {last} come"
        for number in dict.fromkeys(frames):
            given, of = self.given[number], out.frame == number
            slot = out.slot[of]
            assert out.grid == given.grid and out.features.dtype == given.features.dtype
            assert (slot.diff() > 0).all(), f"slots are not ascending and unique: {slot.tolist()}"
            assert set(slot.tolist()) <= set(given.slot.tolist())
            assert (out.time_s[of] == given.time_s[0]).all(), "another frame's time"
        self._last = last
        self.parts.append(out)

    @property
    def kept(self) -> int:
        return sum(map(len, self.parts))

    @property
    def seen(self) -> int:
        return sum(map(len, self.given.values()))


def _emitted(stream: Stream, frames: Sequence[VisualTokens]) -> _Emitted:
    """All frames pushed, and the rest flushed."""
    emitted = _Emitted(stream.method, stream.state)
    for given in frames:
        emitted.push(given)
    emitted.flush()
    return emitted


def order(method: Any, opened: Opener) -> None:
    """Tokens of the newest frame, each once, in raster order; of a method that looks ahead, of frames that were not
    given out yet, each frame once, and all of them when it is flushed."""
    stream = opened(method)
    _emitted(stream, [stream.input(number) for number in range(NUM)])


def budget(method: Any, opened: Opener) -> None:
    """As many tokens as `keep` or `keep_ratio` says; without them, no more than there were, and some."""
    stream = opened(method)
    emitted = _Emitted(method, stream.state)
    for number in range(NUM):
        given = stream.input(number)
        count = len(emitted.push(given))
        if hasattr(method, "keep") and not method.lookahead:
            assert count == num_kept(len(given), method.keep, getattr(method, "keep_ratio", None))
    emitted.flush()
    assert 1 <= emitted.kept <= emitted.seen
    if hasattr(method, "keep"):
        one = num_kept(len(stream.input(0)), method.keep, getattr(method, "keep_ratio", None))
        assert emitted.kept <= NUM * one, f"{emitted.kept} tokens, where {NUM * one} may be kept"


def rows_are_carried(method: Any, opened: Opener) -> None:
    """A token that stands for itself has the rows of the token that it was, in every array. No weight comes from
    nowhere, no array is lost."""
    stream = opened(method)
    emitted = _emitted(stream, [stream.input(number) for number in range(NUM)])
    for out in emitted.parts:
        for number, part in out.by_frame():
            given = emitted.given[number]
            assert part.extras.keys() == given.extras.keys(), f"extras {list(given.extras)} became {list(part.extras)}"
            alone = part.weight == 1
            for name, source in (("features", given.features), *given.extras.items()):
                value = part.features if name == "features" else part.extras[name]
                assert torch.equal(value[alone], source[part.slot[alone]]), f"{name} are not those of the kept tokens"
    weight = sum(float(out.weight.sum()) for out in emitted.parts)
    assert weight <= emitted.seen * (1 + 1e-5), "weight came from nowhere"


def engagement(method: Any, opened: Opener) -> None:
    """On a moving clip something is left out, and something is kept."""
    stream = opened(method)
    emitted = _emitted(stream, [stream.input(number) for number in range(NUM)])
    assert 0 < emitted.kept < emitted.seen


def a_look_leaves_no_trace(method: Any, opened: Opener) -> None:
    """What a question reads of what is held, on a fork, changes nothing that is given out later."""
    expected = run(opened(method), range(NUM))
    stream = opened(method)
    for number in range(NUM):
        assert_same(stream.push(number), expected[number])
        held = method.num_held(stream.state)
        out = method.flush(stream.state.fork())
        assert method.num_held(stream.state) == held
        assert held or out is None or not len(out), "a flush gives out what was not held"


def odd_streams(method: Any, opened: Opener) -> None:
    """Constant, black, one-frame and one-token streams give finite tokens, and so does one whose size changes."""
    still = moving_features(0, 0, 20, DIM)
    for features in (still, torch.zeros(20, DIM), torch.ones(20, DIM), still[:1]):
        grid = (4, 5) if len(features) == 20 else (1, 1)
        emitted = _emitted(opened(method), [frame_tokens(features, number, grid) for number in range(4)])
        assert_finite(emitted.parts)
    sizes = [(4, 5), (4, 5), (2, 3), (4, 5), (2, 3), (2, 3)]
    frames = [frame_tokens(still[: rows * cols], number, (rows, cols)) for number, (rows, cols) in enumerate(sizes)]
    assert_finite(_emitted(opened(method), frames).parts)


def half_precision(method: Any, opened: Opener) -> None:
    """bfloat16 in, bfloat16 out."""
    emitted = _emitted(opened(method), [moving_frame(0, number, torch.bfloat16) for number in range(4)])
    assert_finite(emitted.parts)


def generous_budget(method: Any, opened: Opener) -> None:
    """A budget larger than the frame keeps everything."""
    if "keep" not in {f.name for f in dataclasses.fields(method)}:
        return
    changes = {"keep_ratio": None} if hasattr(method, "keep_ratio") else {}
    stream = opened(dataclasses.replace(method, keep=10_000, **changes))
    emitted = _emitted(stream, [stream.input(number) for number in range(4)])
    kept, given = join(emitted.parts), join(emitted.given.values())
    assert_same(dataclasses.replace(kept, whole={}), dataclasses.replace(given, whole={}))


COMPRESSOR = (
    order,
    budget,
    rows_are_carried,
    engagement,
    a_look_leaves_no_trace,
    odd_streams,
    half_precision,
    generous_budget,
)

# ---------------------------------------------------------------------------------------------- points for encoders


def _dense(tower: Any, hidden: torch.Tensor) -> torch.Tensor:
    for layer in tower.layers:
        hidden = layer.dense(hidden)
    return hidden


def _check_encoded(tower: Any, given: torch.Tensor, out: Encoded) -> None:
    assert out.hidden.shape == given.shape and out.hidden.dtype == given.dtype
    assert set(out.taps) == set(tower.tap_layers)
    assert all(tap.shape == given.shape for tap in out.taps.values())
    assert len(out.refreshed) == len(given)
    if out.recomputed is not None:
        assert out.recomputed.shape == given.shape[:2] and out.recomputed.dtype == torch.float32
        assert ((out.recomputed >= 0) & (out.recomputed <= 1 + 1e-6)).all()
    assert_finite(out)


def encoder_output(method: Any, opened: Opener) -> None:
    """Hidden states of the input's shape, every tap, shares between 0 and 1; also for tokens chosen in groups."""
    for tower in (toy_tower(), toy_tower(12, group=4, pinned=0)):
        state = method.new_state()
        for number in range(NUM):
            hidden = moving_features(0, number, tower.num_tokens, tower.dim)[None].double()
            out = method.encode(tower, hidden, [state])
            _check_encoded(tower, hidden, out)
            if tower.group > 1 and out.recomputed is not None:
                shares = out.recomputed[0].view(-1, tower.group)
                assert torch.equal(shares, shares[:, :1].expand_as(shares)), "a group was split"


def first_frame_is_dense(method: Any, opened: Opener) -> None:
    """Without a past there is nothing to reuse."""
    stream = typing.cast(EncoderStream, opened(method))
    given = stream.input(0)
    assert torch.allclose(stream.push_input(given).hidden, _dense(stream.tower, given), rtol=0, atol=1e-9)


def encoder_engagement(method: Any, opened: Opener) -> None:
    """On a moving clip some frame is not the dense result."""
    stream = typing.cast(EncoderStream, opened(method))
    inputs = [stream.input(number) for number in range(NUM)]
    same = [torch.allclose(stream.push_input(x).hidden, _dense(stream.tower, x), rtol=0, atol=1e-9) for x in inputs]
    assert not all(same)


def encoder_odd_streams(method: Any, opened: Opener) -> None:
    """Constant, black and one-token streams, in float64 and bfloat16; a change of size in mid-stream."""
    for dtype in (torch.float64, torch.bfloat16):
        state = method.new_state()
        for num_tokens in (13, 1, 13):
            tower = toy_tower(num_tokens, pinned=int(num_tokens > 1), dtype=dtype)
            for features in (moving_features(0, 0, num_tokens, 16), torch.zeros(num_tokens, 16)):
                for _ in range(3):
                    _check_encoded(tower, hidden := features[None].to(dtype), method.encode(tower, hidden, [state]))


ENCODER = (encoder_output, first_frame_is_dense, encoder_engagement, encoder_odd_streams)

# ---------------------------------------------------------------------------------------------- points for memories


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

# ---------------------------------------------------------------------------------------------- points for responses


def decides(method: Any, opened: Opener) -> None:
    """A decision is silent, speak or delegate, with a finite score, on quiet and odd streams too."""
    stream = opened(method)
    for number in range(60):
        _check_decision(stream.push(number))
    for level in (0.0, 1.0):
        state = method.new_state()
        for number in range(10):
            given = flat_moment(number * 0.5, level)
            _check_decision(method.decide(only_needed(given, method.needs), state))
            nothing = Moment(number * 0.5 + 0.25, level, None)
            _check_decision(method.decide(nothing, state))


def _check_decision(decision: Decision) -> None:
    assert type(decision) is Decision and decision.outcome in typing.get_args(Outcome), f"no decision: {decision!r}"
    for value in (decision.score, decision.threshold):
        assert value is None or (type(value) is float and math.isfinite(value)), f"no number to draw: {decision!r}"


def response_engagement(method: Any, opened: Opener) -> None:
    """On a stream with quiet and busy times it speaks, but not all the time."""
    stream = opened(method)
    assert len({stream.push(number).speaks for number in range(stream.num_long)}) == 2


def quiet_times_are_kept(method: Any, opened: Opener) -> None:
    """A policy with a quiet time keeps it, however loud the stream is."""
    if "quiet_s" not in {f.name for f in dataclasses.fields(method)}:
        return
    stream = opened(dataclasses.replace(method, quiet_s=7.0))
    times = [number * 0.5 for number in range(stream.num_long) if stream.push(number).outcome != "silent"]
    assert all(after - before >= 7.0 for before, after in itertools.pairwise(times)), f"too soon: {times}"


def a_rule_is_written_with_it(method: Any, opened: Opener) -> None:
    """A rule with this policy is read again from its fields: no setting has the name of one of the rule's own."""
    own = {f.name for f in dataclasses.fields(Rule)}
    assert not (same := own & {f.name for f in dataclasses.fields(method)}), f"a rule has {', '.join(same)} itself"
    if registry.describe(method).partition(":")[0] in registry.names("response"):
        rule = Rule("a", "b?", method, then="answer")
        assert Rule.from_dict(json.loads(json.dumps(rule.as_dict()))) == rule


RESPONSE = (decides, response_engagement, quiet_times_are_kept, a_rule_is_written_with_it)

# ---------------------------------------------------------------------------------------------- points for refiners


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

# --------------------------------------------------------------------------------------------- points for schedules


def choices_may_be_taken(method: Any, opened: Opener) -> None:
    """Streams that wait, each once, never more than there is room for; also with one, no room, or none at all."""
    stream = opened(method)
    for number in range(60):
        given = stream.input(number)
        chosen = stream.push_input(given)
        assert len(set(chosen)) == len(chosen) <= 2, f"{chosen} were chosen, with room for 2"
        assert set(chosen) <= {one.stream for one in given}, f"{chosen} do not all wait"
    state = method.new_state()
    frame = Frame(picture(0, 0), 0.0)
    assert method.choose([], 4, 0.0, state) == []
    assert method.choose([Waiting(3, 0.0, frame)], 0, 0.0, state) == [], "chosen where there is no room"
    assert method.choose([Waiting(3, 0.0, frame)], 4, 9.0, method.new_state()) == [0], "a lone stream is not looked at"
    method.left(77, state)
    assert method.rest_s(0.0, state) >= 0 and (method.most_fps is None or method.most_fps > 0)


def nobody_waits_for_ever(method: Any, opened: Opener) -> None:
    """With eight streams that all wait, and one that changes, each is looked at within 200 steps."""
    state, since, seen = method.new_state(), dict.fromkeys(range(8), 0.0), set()
    for number in range(200):
        frames = [Frame(picture(n, number if n == 5 else 0), float(number)) for n in range(8)]
        waiting = [Waiting(n, since[n], frame) for n, frame in enumerate(frames)]
        for place in method.choose(waiting, 1, float(number), state):
            seen.add(place)
            since[place] = float(number)
    assert seen == set(range(8)), f"streams {sorted(set(range(8)) - seen)} were never looked at"


SCHEDULE = (choices_may_be_taken, nobody_waits_for_ever)

# ------------------------------------------------------------------------------------------------- points for gates


def verdicts_are_whole(method: Any, opened: Opener) -> None:
    """Every verdict is a share from 0 to 1, or a picture, and the first frame is seen, whatever its size."""
    stream = opened(method)
    looked, firsts = [stream.push(number) for number in range(60)], [opened(method).push(0)]
    for size in ((56, 56), (1, 1), (3, 200), (720, 406)):
        state, ground = method.new_state(), np.zeros((*size, 3), np.uint8)
        firsts.append(method.look(Frame(ground, 0.0), MemoryView(), state))
        looked.append(method.look(Frame(ground + 255, 1.0), MemoryView((), 0.0), state))
    for verdict in (*looked, *firsts):
        if isinstance(verdict, np.ndarray):
            Frame(verdict, 0.0)
        else:
            assert type(verdict) is float and 0 <= verdict <= 1, f"{verdict!r} is no share of a frame, and no picture"
    assert all(isinstance(verdict, np.ndarray) or verdict > 0 for verdict in firsts), "a first frame was skipped"


def gate_engagement(method: Any, opened: Opener) -> None:
    """On a stream that stands still for a while some frames are not encoded whole, and some are."""
    stream = opened(method)
    whole = {isinstance(verdict, float) and verdict == 1 for verdict in map(stream.push, range(60))}
    assert whole == {True, False}, "all frames of a stream that moves and stands still got the same verdict"


GATE = (verdicts_are_whole, gate_engagement)

# ----------------------------------------------------------------------------------------------- points for thinkers


def thoughts_are_whole(method: Any, opened: Opener) -> None:
    """A thought has words, a length, and is about no later time than its moment; a note of it has words, too."""
    stream = typing.cast(ThinkStream, opened(method))
    for number in range(stream.num_long):
        thought = stream.push(number)
        if thought is None:
            continue
        assert isinstance(thought, Thought) and thought.prompt.strip() and thought.longest >= 1, (
            f"no thought: {thought!r}"
        )
        assert 0 <= thought.since_s <= thought.until_s <= number * 5.0, f"not about the past: {thought!r}"
        assert "said" in method.write(thought, "said")


def think_engagement(method: Any, opened: Opener) -> None:
    """On a long stream something is written down, but not at every frame."""
    stream = opened(method)
    assert len({stream.push(number) is None for number in range(stream.num_long)}) == 2


def hidden_notes_are_kept(method: Any, opened: Opener) -> None:
    """What frames shall not see is kept for questions, the newest of it last; all else is the memory's."""
    stream = typing.cast(ThinkStream, opened(method))
    run(stream, range(stream.num_long))
    kept = list(method.kept(stream.state))
    if not method.hidden:
        assert not kept, "what the memory has is kept twice"
    else:
        assert kept and kept == stream.notes[-len(kept) :], "the newest notes were not kept"


THINK = (thoughts_are_whole, think_engagement, hidden_notes_are_kept)

# -------------------------------------------------------------------------------------------------------- the suite

_SPECIAL = {
    "codec": CODEC,
    "gate": GATE,
    "schedule": SCHEDULE,
    "compressor": COMPRESSOR,
    "encoder": ENCODER,
    "memory": MEMORY,
    "refiner": REFINER,
    "response": RESPONSE,
    "think": THINK,
}
Point = Callable[[Any, Opener], None]


def points(kind: str) -> dict[str, Point]:
    """The points of the contract of a kind of method, by the name used in `contract_exceptions`."""
    return {point.__name__.removeprefix(f"{kind}_"): point for point in (*COMMON, *_SPECIAL[kind])}


def exceptions(kind: str, method: Any) -> dict[str, str]:
    """The points that a method declares not to apply, with reasons."""
    declared = getattr(type(method), "contract_exceptions", {})
    if kind == "memory":
        others, reason = (BLOCKS, "it holds tokens, not blocks") if method.holds_tokens else (TOKENS, "it holds blocks")
        declared = {**{point.__name__.removeprefix("memory_"): reason for point in others}, **declared}
    if registry.describe(method) == "full":  # the baseline of its kind, by definition
        reasons = dict.fromkeys(("engagement", "bounded_memory"), "it is the baseline that leaves nothing out")
        declared = {**{name: reasons[name] for name in points(kind) if name in reasons}, **declared}
    assert declared.keys() <= points(kind).keys(), f"no such points: {declared.keys() - points(kind).keys()}"
    assert all(reason.strip() for reason in declared.values()), "an exception needs a reason"
    return declared


def check(kind: str, name: str, method: Any) -> None:
    """Run one point; when it fails, say which promise was broken, where it stands, and what happened."""
    point = points(kind)[name]
    try:
        point(method, STREAMS[kind])
    except Exception as error:
        promise = " ".join((point.__doc__ or "").split())
        place = traceback.extract_tb(error.__traceback__)[-1]
        happened = str(error).strip() or f"this does not hold: {place.line}"
        raise AssertionError(
            f"{registry.describe(method)} ({kind}) breaks the promise `{name}`: {promise}\n"
            f"  what happened: {happened} ({type(error).__name__}, {Path(place.filename).name}:{place.lineno})\n"
            f"  the promise stands in {Path(__file__).name}:{point.__code__.co_firstlineno}; all of them: "
            "docs/adding_a_method.md\n"
            "  a method to which it does not apply says why in `contract_exceptions`"
        ) from error


def failing_points(kind: str, method: Any) -> set[str]:
    """The names of the points that a method breaks, crashes included, less those it declares not to apply."""
    declared = exceptions(kind, method)
    failed = set()
    for name, point in points(kind).items():
        try:
            point(method, STREAMS[kind])
        except Exception:
            failed.add(name)
    return failed - declared.keys()


def variants(kind: str, chosen: str) -> list[Any]:
    """A method with its defaults, and with every other value of each setting that has few (and a small `keep`)."""
    plain = registry.make(kind, chosen)
    found = [plain]
    for name, hint in typing.get_type_hints(type(plain)).items():
        if not hasattr(plain, name) or name not in {f.name for f in dataclasses.fields(plain)}:
            continue
        values: Sequence[Any] = ()
        if typing.get_origin(hint) is typing.Literal:
            values = typing.get_args(hint)
        elif hint is bool:
            values = (False, True)
        elif name == "keep":
            values = (5,)
        elif type(None) in typing.get_args(hint) and name != "keep_ratio":
            values = (None,)
        for value in values:
            if value != getattr(plain, name):
                try:
                    found.append(dataclasses.replace(plain, **{name: value}))
                except InputError:
                    continue  # a value that asks for another setting
    return found
