"""The promises of encoders."""

import typing
from collections.abc import Sequence
from typing import Any

import torch
from contract_base import NUM, Opener, Stream, assert_finite
from contract_streams import (
    moving_features,
    toy_tower,
)

from onlooker.core.contracts import Encoded


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
