"""The pixel gate: noise is still, a small thing that moves is not, slow drift adds up, and nothing rests for ever."""

import numpy as np
import pytest

from onlooker.core.contracts import MemoryView
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.gate import EveryNth, StillSkip


def verdicts(gate: StillSkip | EveryNth, images: list[np.ndarray], step_s: float = 1.0) -> list[float]:
    state = gate.new_state()
    return [float(gate.look(Frame(one, n * step_s), MemoryView(), state)) for n, one in enumerate(images)]


def ground(size: tuple[int, int] = (240, 320), level: int = 90) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_the_noise_of_a_sensor_is_stillness() -> None:
    rng = np.random.default_rng(0)
    noisy = [(ground() + rng.normal(0, 6, (240, 320, 3))).clip(0, 255).astype(np.uint8) for _ in range(6)]
    assert verdicts(StillSkip(), noisy) == [1, 0, 0, 0, 0, 0]


def test_a_small_thing_in_a_corner_is_seen() -> None:
    moved = ground()
    moved[228:238, 305:315] = 200  # a tenth of a percent of the picture: its mean changes by a seventh of a grey level
    assert abs(float(moved.mean()) - 90) < 0.2
    assert verdicts(StillSkip(), [ground(), moved, moved, ground()]) == [1, 1, 0, 1]


def test_slow_drift_adds_up() -> None:
    drift = [ground(level=90 + n // 2) for n in range(16)]
    assert verdicts(StillSkip(threshold=3.0), drift) == [1.0 if n in (0, 8) else 0.0 for n in range(16)]


def test_a_still_picture_is_looked_at_again_after_a_while() -> None:
    still = [ground()] * 12
    assert verdicts(StillSkip(longest_s=5.0), still) == [1.0 if n % 5 == 0 else 0.0 for n in range(12)]
    assert verdicts(StillSkip(longest_s=None), still, step_s=1000.0) == [1.0] + [0.0] * 11


def test_a_picture_of_another_size_is_another_picture() -> None:
    assert verdicts(StillSkip(), [ground(), ground((320, 240)), ground((1, 1)), ground((1, 1))]) == [1, 1, 1, 0]


def test_large_pictures_are_looked_at_sparsely_and_small_changes_still_found() -> None:
    large = ground((1080, 1920))
    moved = large.copy()
    moved[500:560, 900:960] = 250
    assert verdicts(StillSkip(), [large, moved, moved]) == [1, 1, 0]


def test_every_nth_counts() -> None:
    assert verdicts(EveryNth(3), [ground()] * 7) == [1, 0, 0, 1, 0, 0, 1]
    assert EveryNth(3).less() == EveryNth(6) and EveryNth(64).less() is None


@pytest.mark.parametrize("wrong", [{"threshold": -1.0}, {"threshold": 256.0}, {"longest_s": 0.0}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        StillSkip(**wrong)
    with pytest.raises(InputError, match="n counts frames"):
        EveryNth(0)
