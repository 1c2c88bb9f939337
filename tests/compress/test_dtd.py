"""Differential token drop against plain derivations, and against slow drift."""

import itertools

import numpy as np
import pytest
import torch
from tiny import make_folder

from onlooker.compress import DTD
from onlooker.core.frame import Frame
from onlooker.core.tokens import VisualTokens
from onlooker.engine import Engine
from onlooker.models import load


def stream(seed: int, frames: int = 8, tokens: int = 12, dim: int = 6) -> list[torch.Tensor]:
    """Tokens of which some turn from frame to frame."""
    make = torch.Generator().manual_seed(seed)
    rows, shown = torch.randn(tokens, dim, generator=make), []
    for _ in range(frames):
        rows = rows + 3 * torch.randn(tokens, dim, generator=make) * torch.rand(tokens, 1, generator=make) ** 2
        rows = torch.nn.functional.normalize(rows, dim=1)
        shown.append(rows)
    return shown


def tokens_of(features: torch.Tensor, number: int, **extras: torch.Tensor) -> VisualTokens:
    return VisualTokens.of_frame(features, (3, len(features) // 3), number, float(number), extras)


def kept_by(method: DTD, frames: list[torch.Tensor]) -> list[list[int]]:
    state = method.new_state()
    return [method.compress(tokens_of(x, n), state).slot.tolist() for n, x in enumerate(frames)]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    one, two = a.double().numpy(), b.double().numpy()
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


@pytest.mark.proves("timechat_online", 1)
@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_like_those_before_are_dropped(seed: int, threshold: float) -> None:
    frames = stream(seed)
    wanted = [list(range(12))]
    for before, now in itertools.pairwise(frames):
        wanted.append([n for n in range(12) if cosine(before[n], now[n]) <= threshold])
    assert kept_by(DTD(threshold=threshold), frames) == wanted
    assert 0 < sum(map(len, wanted[1:])) < 7 * 12


@pytest.mark.proves("timechat_online", 1)
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_fixed_share_keeps_the_least_alike(share: float) -> None:
    frames = stream(5)
    wanted = [list(range(12))]
    for before, now in itertools.pairwise(frames):
        ranked = sorted(range(12), key=lambda n: (cosine(before[n], now[n]), n))
        wanted.append(sorted(ranked[: int(12 * share)]))
    assert kept_by(DTD(keep_ratio=share), frames) == wanted


@pytest.mark.proves("timechat_online", 1)
def test_the_anchored_form_compares_with_what_was_kept() -> None:
    frames = stream(6, frames=12)
    anchors, wanted, age = [row.clone() for row in frames[0]], [list(range(12))], 1
    for now in frames[1:]:
        whole = age >= 5
        kept = [n for n in range(12) if whole or cosine(anchors[n], now[n]) <= 0.5]
        age = 1 if whole else age + 1
        for n in kept:
            anchors[n] = now[n].clone()
        wanted.append(kept)
    assert kept_by(DTD(anchored=True, refresh=5), frames) == wanted


def test_a_moving_camera_is_capped_and_a_whole_frame_is_not() -> None:
    frames = [torch.randn(12, 6, generator=torch.Generator().manual_seed(n)) for n in range(9)]
    counts = [len(kept) for kept in kept_by(DTD(threshold=0.99, most_ratio=0.5, refresh=4), frames)]
    assert counts == [12, 6, 6, 6, 12, 6, 6, 6, 12]


@pytest.mark.proves("timechat_online", 3)
def test_slow_drift_blinds_the_published_form_and_no_other() -> None:
    """A scene turns into another one in 60 steps, each too small to be seen."""
    make = torch.Generator().manual_seed(1)
    first = torch.nn.functional.normalize(torch.randn(12, 32, generator=make), dim=1)
    other = torch.randn(12, 32, generator=make)
    other = torch.nn.functional.normalize(other - (other * first).sum(1, keepdim=True) * first, dim=1)
    angles = torch.linspace(0, torch.pi / 2, 61)
    frames = [torch.cos(a) * first + torch.sin(a) * other for a in angles]

    def remembered(method: DTD) -> tuple[float, int]:
        state, memory, emitted = method.new_state(), frames[0].clone(), 0
        for n, features in enumerate(frames):
            out = method.compress(tokens_of(features, n), state)
            memory[out.slot] = out.features
            emitted += len(out) if n else 0
        return float(torch.nn.functional.cosine_similarity(memory, frames[-1], dim=1).mean()), emitted

    blind, emitted = remembered(DTD())
    assert emitted == 0 and abs(blind) < 0.05
    assert remembered(DTD(anchored=True))[0] >= 0.8
    assert remembered(DTD(refresh=16))[0] >= 0.8


@pytest.mark.proves("timechat_online", 1)
def test_the_pixel_form_compares_the_picture_under_a_token(tmp_path) -> None:
    """On pictures: only where one changed by more than the threshold, token by token."""
    model = load(make_folder(tmp_path), device="cpu")
    session = Engine(model, encoder="full", compressor="dtd:compared=pixels", memory="full").open()
    image = np.random.default_rng(1).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    counts = []
    for number in range(4):
        image = image.copy()
        if number == 2:
            image[:28, 28:] = 255 - image[:28, 28:]
        if number == 3:
            image[30, 30] ^= 7  # less than a hundredth of what lies under the token
        counts.append(session.push(Frame(image, float(number))).tokens_kept)
    assert counts == [4, 0, 1, 0]


def test_pixels_are_compared_as_they_were_written_down() -> None:
    make = torch.Generator().manual_seed(2)
    first = torch.randint(0, 256, (12, 30), generator=make, dtype=torch.uint8)
    second = torch.where(torch.rand(12, 1, generator=make) < 0.5, first, 255 - first)
    features, state = stream(1)[0], DTD(compared="pixels").new_state()
    DTD(compared="pixels").compress(tokens_of(features, 0, pixels=first), state)
    out = DTD(compared="pixels").compress(tokens_of(features, 1, pixels=second), state)
    change = [
        np.abs(a.numpy().astype(int) - b.numpy().astype(int)).mean() / 255 for a, b in zip(first, second, strict=True)
    ]
    assert out.slot.tolist() == [n for n in range(12) if change[n] >= 0.01] and len(out)
