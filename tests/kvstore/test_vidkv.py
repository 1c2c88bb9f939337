"""VidKV's arithmetic against a second derivation, its bytes, and what it refuses."""

import math

import pytest
import torch

from onlooker.codecs.vidkv import VidKV
from onlooker.core.errors import InputError


def states(seed: int, tokens: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 2, tokens, dim, generator=generator, dtype=torch.float64)
    return (keys * torch.logspace(-1, 1, dim)).float(), values.float()


@pytest.mark.parametrize(("tokens", "dim", "bits"), [(60, 16, 1.5), (7, 12, 1.25), (9, 12, 1.5), (5, 8, 1.0)])
def test_as_derived_number_by_number(tokens, dim, bits):
    keys, values = states(0, tokens, dim)
    codec = VidKV(key_bits=bits)
    got_keys, got_values = codec.decode(codec.encode(keys, values), torch.float32)
    count = round((bits - 1) * dim)
    for head in range(2):
        ranges = [float(keys[head, :, d].max() - keys[head, :, d].min()) for d in range(dim)]
        wide = sorted(sorted(range(dim), key=lambda d: -ranges[d])[:count])
        narrow = [d for d in range(dim) if d not in wide]
        for d in wide:
            low, high = float(keys[head, :, d].min()), float(keys[head, :, d].max())
            for t in range(tokens):
                step, number = (high - low) / 3, float(got_keys[head, t, d])
                level = (number - low) / step  # one of four, and the nearest
                assert abs(level - round(level)) < 0.01 and abs(number - float(keys[head, t, d])) < 0.51 * step
        # The transform, written out, of the other channels; each number keeps the side of its mean that it is on.
        m = len(narrow)
        angle = [[2 * math.pi * f * n / m for n in range(m)] for f in range(m // 2 + 1)]
        spectrum = torch.zeros(tokens, m // 2 + 1, dtype=torch.complex128)
        plain = keys[head][:, narrow].double()
        for f in range(m // 2 + 1):
            turn = torch.tensor([complex(math.cos(a), -math.sin(a)) for a in angle[f]], dtype=torch.complex128)
            spectrum[:, f] = (plain * turn).sum(1) / math.sqrt(m)

        def two_sided(numbers: torch.Tensor) -> torch.Tensor:
            mean = numbers.mean(0)
            side = (numbers - mean).abs().mean(0)
            return torch.where(numbers > mean, mean + side, mean - side)

        near = torch.complex(two_sided(spectrum.real), two_sided(spectrum.imag))
        back = torch.fft.irfft(near, n=m, norm="ortho")
        torch.testing.assert_close(
            got_keys[head][:, narrow].double(), back, rtol=0, atol=0.02 * float(plain.abs().max())
        )
    size = values.abs()
    large = size > 0.7 * size.mean(1, keepdim=True)
    level = (size * large).sum(1) / large.sum(1)
    torch.testing.assert_close(got_values, values.sign() * large * level[:, None], rtol=2e-3, atol=1e-3)


def test_bytes_of_an_hour():
    """ReKV's hour: 0.5 frames a second of 60 tokens at the shapes of a 7B model are 6.2 GB in 16 bits."""
    hour = VidKV().num_bytes(28, 4, 60, 128, torch.bfloat16) * 1800
    assert hour <= 0.8e9, f"{hour / 1e9:.3f} GB"
    more = VidKV(key_bits=2, value_bits=2).num_bytes(28, 4, 60, 128, torch.bfloat16) * 1800
    assert hour < more < 1.1e9


@pytest.mark.parametrize("settings", [{"key_bits": 0.9}, {"key_bits": 2.5}, {"value_bits": 1.0}])
def test_other_bits_are_refused(settings):
    with pytest.raises(InputError, match="bits"):
        VidKV(**settings)
