"""The promises that methods of every kind make, and what all contract tests share: streams, and what equal means."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from contract_streams import (
    DIM,
)

from onlooker.core import registry
from onlooker.core.contracts import Moment
from onlooker.core.frame import Frame
from onlooker.core.kinds import KINDS
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread


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


SIGNALS = {f.name for f in dataclasses.fields(Moment)} - {"time_s", "kept_ratio", "recomputed_ratio", "said_s"}


def only_needed(given: Moment, needs: frozenset[str]) -> Moment:
    """The moment with the signals that a policy has asked for, and no others."""
    assert needs <= SIGNALS, f"there are no signals {sorted(needs - SIGNALS)}"
    shown = needs | ({"silence_is_likeliest"} if "silence_probability" in needs else set())
    return dataclasses.replace(given, **dict.fromkeys(SIGNALS - shown))


def run(stream: Stream, numbers: Sequence[int]) -> list[Any]:
    """Outputs as they were when they were made."""
    return [copy.deepcopy(stream.push(number)) for number in numbers]


Opener = Callable[..., Stream]
NUM = 10
QUESTION = torch.ones(3, DIM)


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
    kind = next(name for name, kind in KINDS.items() if isinstance(method, kind.load_base()))
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
