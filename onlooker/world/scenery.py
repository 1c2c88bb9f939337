"""Shots: procedural backgrounds, camera moves and light, drawn from a seeded generator."""

import math
import random

from onlooker.world.script import Shot
from onlooker.world.world_settings import WorldSettings

BACKGROUNDS = ("marble", "stripes", "checks", "gradient", "blobs")
"""Kinds of background; all are sums of warped waves, grey to lightly tinted so that sprite colours stand out."""
NUM_WAVES = 5
TEXTURE_NUMBERS = 16
"""Numbers that describe a texture under the camera: twelve of `texture`, then (cos, sin) / zoom and an offset."""


def make_shots(
    rng: random.Random, kind: str, cuts: list[float], duration_s: float, settings: WorldSettings
) -> list[Shot]:
    """One shot from each time in `cuts` (the first is 0) to the next."""
    return [
        _shot(rng, kind, start, end, settings)
        for start, end in zip(cuts, [*cuts[1:], duration_s], strict=True)
        if end > start
    ]


def _shot(rng: random.Random, kind: str, start_s: float, end_s: float, settings: WorldSettings) -> Shot:
    background = rng.randrange(len(BACKGROUNDS))
    waves, mix = _background(rng, background, settings)
    speed, heading = rng.uniform(*settings.drift), rng.uniform(0, 2 * math.pi)
    sway, zoom, shake, flicker = (0.0, 0.0), 0.0, 0.0, 0.0
    sway_period_s = rng.uniform(8, 16)
    sigma, swing = rng.uniform(*settings.noise_sigma), rng.uniform(0, settings.light_swing)
    if kind in ("mixed", "long", "cuts") and rng.random() < settings.camera_share:
        sway = (rng.uniform(0, 0.04), rng.uniform(0, 0.04))
        zoom = rng.choice((0.0, rng.uniform(0.02, 0.07)))
        shake = rng.choice((0.0, 0.0, rng.uniform(0.002, 0.007)))
    elif kind == "pan":
        speed, sway, sway_period_s = rng.uniform(0.12, 0.35), (rng.uniform(0.03, 0.045), 0.03), rng.uniform(7, 10)
    elif kind == "slow_drift":
        speed, swing = rng.uniform(0.008, 0.02), 0.0
    elif kind == "flicker":
        flicker, speed = rng.uniform(0.12, 0.25), 0.0
    elif kind == "frozen_noise":
        speed, swing, sigma = 0.0, 0.0, rng.uniform(9, 15)
    elif kind in ("small_blink", "static_hour"):
        speed, swing, sigma = 0.0, 0.0, rng.uniform(0, 3)
    return Shot(
        start_s, end_s, background, waves, mix, (speed * math.cos(heading), speed * math.sin(heading)),
        sway, sway_period_s, zoom, shake, rng.uniform(0.88, 1.08), swing, flicker, sigma,
    )  # fmt: skip


def texture(rng: random.Random, contrast: float, colourful: float) -> tuple[float, ...]:
    """Twelve numbers of a ground like those of nature: noise whose amplitude falls with frequency, in full colour.

    (contrast in grey levels, cells per frame height of the coarsest octave, fall of the amplitude by octave, ridges,
    patches, colourfulness, mean red, green, blue, and three shifts).
    """
    kind = rng.randrange(3)
    grey = rng.uniform(70, 185)
    tint = [rng.uniform(-55, 55) * colourful for _ in range(3)]
    return (
        contrast, rng.uniform(2.0, 5.0), rng.uniform(0.5, 0.75), rng.uniform(0.5, 1.0) * (kind == 1),
        rng.uniform(0.4, 0.9) * (kind == 2), colourful, *(grey + t for t in tint),
        *(rng.uniform(0, 64) for _ in range(3)),
    )  # fmt: skip


def _wave(rng: random.Random, cycles: float, angle: float) -> tuple[float, float, float]:
    """(kx, ky, phase) of a wave of `cycles` per frame height, in radians."""
    k = cycles * 2 * math.pi
    return k * math.cos(angle), k * math.sin(angle), rng.uniform(0, 2 * math.pi)


def _background(rng: random.Random, kind: int, settings: WorldSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(waves, mix): five waves, then weights, sharpness, bias, fine texture and the two colours of one background.

    The picture is `clip(0.5 + sharp * (q0 s0 + q1 s1 + q2 s0 s1 + q3 s2 + q4 s3 + bias)) + fine * s4`, which mixes the
    colours; `s2`, `s3` and `s4` are warped by `s0`, `s1` and `s2`.
    """
    angle = rng.uniform(0, math.pi)
    cross = angle + math.pi / 2
    q, sharp, bias = [0.0] * 5, 0.5, 0.0
    low, high = 1.5, 3.0
    if kind == 0:
        q, sharp = [0.2, 0.2, 0.15, 0.55, 0.45], rng.uniform(0.5, 0.9)
        low, high = 1.0, 2.2
    elif kind == 1:
        q[0], q[3], sharp = 1.0, 0.15, rng.uniform(0.6, 4.0)
        low = high = rng.uniform(4, 10)
    elif kind == 2:
        q[2], q[3], sharp = 1.0, 0.1, rng.uniform(2.0, 6.0)
        low = high = rng.uniform(2.0, 5.0)
    elif kind == 3:
        q[0], q[4], sharp = 0.7, 0.3, 0.6
        low, high = 0.2, 0.5
    else:
        q[2], q[3], sharp, bias = 1.0, 0.3, rng.uniform(1.2, 3.0), -0.45
        low, high = 1.5, 3.2
    waves = (
        *_wave(rng, rng.uniform(low, high), angle), *_wave(rng, rng.uniform(low, high), cross),
        *_wave(rng, rng.uniform(2, 5), rng.uniform(0, 6.3)), *_wave(rng, rng.uniform(2, 5), rng.uniform(0, 6.3)),
        *_wave(rng, rng.uniform(9, 16), rng.uniform(0, 6.3)),
    )  # fmt: skip
    contrast = rng.uniform(*settings.contrast)
    grey = rng.uniform(0.18 + contrast / 2, 0.82 - contrast / 2)
    tint = [rng.uniform(-0.05, 0.05) for _ in range(3)]
    first = [255 * (grey - contrast / 2 + t) for t in tint]
    second = [255 * (grey + contrast / 2 - t * 0.6) for t in tint]
    return waves, (*q, sharp, bias, rng.uniform(0.05, 0.16), *first, *second)
