"""Textures like those of nature, and damage of known severity: what the levels above L0 add to the picture."""

import hashlib
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

OCTAVES = 5
_SIDE = 64


@cache
def lattice(device: str) -> Tensor:
    """Random values in -1..1, float32 `[64 * 64, 3]`, the same everywhere: made from a hash, not from a generator."""
    raw = hashlib.shake_256(b"onlooker ground").digest(_SIDE * _SIDE * 3)
    values = np.frombuffer(raw, np.uint8).astype(np.float32).reshape(_SIDE * _SIDE, 3) / 127.5 - 1
    return torch.from_numpy(values).to(device)


def textured(numbers: Tensor, x: Tensor, y: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green and blue `[frames, rows, cols]` of textures: noise on a lattice, octave by octave.

    `numbers` is `[frames, 16]` (see `scenery.texture`); `x` and `y` are places in frame heights from the middle.
    """
    n = numbers[:, :, None, None]
    cos, sin = n[:, 12], n[:, 13]
    u, v = cos * x + sin * y + n[:, 14], cos * y - sin * x + n[:, 15]
    scale, weight = n[:, 1], torch.ones_like(n[:, 0])
    total = torch.zeros((*u.shape, 3), device=u.device)
    weights = torch.zeros_like(weight)
    for octave in range(OCTAVES):
        part = _noise(u * scale + n[:, 9], v * scale + n[:, 10] + 17.0 * octave, values)
        total = total + part * weight[..., None]
        weights = weights + weight
        scale, weight = scale * 2.03, weight * n[:, 2]
    total = total / weights[..., None] * 2.0
    light, first, second = total.unbind(-1)
    light = light + n[:, 3] * (0.6 - 2.0 * light.abs() - light)
    light = light + n[:, 4] * (torch.tanh(light * 8.0) * 0.6 - light)
    colour = n[:, 5]
    contrast = n[:, 0]
    red = n[:, 6] + contrast * (light + colour * first)
    green = n[:, 7] + contrast * (light - 0.6 * colour * first + 0.4 * colour * second)
    blue = n[:, 8] + contrast * (light - colour * second)
    return red, green, blue


def _noise(u: Tensor, v: Tensor, values: Tensor) -> Tensor:
    """Smooth noise `[frames, rows, cols, 3]` at places given in lattice cells."""
    left, top = u.floor(), v.floor()
    fu, fv = (u - left)[..., None], (v - top)[..., None]
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    i, j = left.to(torch.int32), top.to(torch.int32)
    i0, i1, j0, j1 = i & 63, (i + 1) & 63, (j & 63) << 6, ((j + 1) & 63) << 6
    a, b = values[i0 + j0], values[i1 + j0]
    c, d = values[i0 + j1], values[i1 + j1]
    upper, lower = a + (b - a) * fu, c + (d - c) * fu
    return upper + (lower - upper) * fv


def damaged(channels: Tensor, damage: Tensor, noise: Tensor) -> Tensor:
    """Pictures `[frames, 3, rows, cols]` in grey levels, blurred, made blocky and noisy by `damage` `[frames, 3]`.

    Severity 1 is a blur of five by five, the means of whole blocks of eight by eight, and noise of 40 levels; `noise`
    `[frames, 3, rows, cols]` has a standard deviation of about one.
    """
    blur, blocks, grain = (part[:, None, None, None] for part in damage.unbind(1))
    rows, cols = channels.shape[2:]
    smooth = F.avg_pool2d(F.pad(channels, (2, 2, 2, 2), mode="replicate"), 5, 1)
    out = channels + (smooth - channels) * blur
    coarse = F.avg_pool2d(out, 8, ceil_mode=True, count_include_pad=False)
    coarse = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :rows, :cols]
    out = out + (coarse - out) * blocks
    return out + noise * (40.0 * grain)
