"""Windows joined by a scale a depth layer: better than one scale for all, from the last window and its scales alone."""

import copy

import numpy as np
import pytest

from benchmarks.align_windows import FRAMES, LAYERS, OVERLAP, Joined, Layered, OneScale, errors, windows, world


@pytest.mark.parametrize("seed", range(4))
def test_a_scale_a_layer_halves_what_one_scale_is_off(seed: int) -> None:
    """In these windows only, the first of which is free of errors: no proof of the published line."""
    layered, one = errors(seed, Layered()), errors(seed, OneScale())
    assert all(ours <= 0.5 * theirs for ours, theirs in zip(layered, one, strict=True)), (layered, one)


@pytest.mark.parametrize("kind", [OneScale, Layered])
def test_windows_without_errors_are_joined_as_they_were(kind: type[Joined]) -> None:
    truth, joined = world(np.random.default_rng(0)), kind()
    for first in range(0, FRAMES - OVERLAP, 12):
        part = slice(first, first + 16)
        told = type(truth)(truth.depths[part] * 3.0, truth.layers[part], (truth.centres[part] - 1.0) * 3.0)
        found = joined.add(told)
        np.testing.assert_allclose(found.depths, truth.depths[part] * 3.0, rtol=1e-6)
        np.testing.assert_allclose(found.centres, (truth.centres[part] - 1.0) * 3.0, rtol=1e-6, atol=1e-6)


@pytest.mark.proves("laser", 2)
def test_the_state_is_the_last_overlap_and_the_scales() -> None:
    rng = np.random.default_rng(1)
    told, joined = list(windows(world(rng), rng)), Layered()
    sizes = set()
    for window in told[:-1]:
        joined.add(window)
        assert joined.overlap is not None and set(vars(joined)) == {"overlap", "scales"}
        parts = (joined.overlap.depths, joined.overlap.layers, joined.overlap.centres, joined.scales)
        assert all(len(part) == OVERLAP for part in parts[:3]) and joined.scales.shape == (LAYERS,)
        sizes.add(sum(part.nbytes for part in parts))
    assert len(sizes) == 1
    again = Layered(copy.deepcopy(joined.overlap), joined.scales.copy())
    ours, theirs = joined.add(told[-1]), again.add(told[-1])
    np.testing.assert_array_equal(ours.depths, theirs.depths)
    np.testing.assert_array_equal(ours.centres, theirs.centres)
