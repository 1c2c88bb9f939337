"""Intervals and tests against simulations whose truth is known: how often they hold it, how often they err."""

import numpy as np
import pytest

from onlooker.evals.statistics import detectable, estimate, holm, paired_gap

# The tables of this library: clips and questions on each (half-hour streams, a quick look, the old and the new size).
TABLES = [(6, 9), (25, 8), (38, 8), (200, 8)]


def marks(rng: np.random.Generator, clusters: int, each: int, share: float, correlation: float) -> np.ndarray:
    """Right or wrong, `[clusters, each]`, where each cluster has a share of its own about the true one."""
    if correlation == 0:
        return (rng.random((clusters, each)) < share).astype(float)
    scale = (1 - correlation) / correlation
    own = rng.beta(share * scale, (1 - share) * scale, (clusters, 1))
    return (rng.random((clusters, each)) < own).astype(float)


def names(clusters: int, each: int) -> list[str]:
    return [str(number) for number in range(clusters) for _ in range(each)]


@pytest.mark.parametrize(("clusters", "each"), TABLES)
def test_an_interval_holds_the_truth_in_93_to_97_of_100_tables(clusters, each):
    rng, of, held = np.random.default_rng(5), names(clusters, each), []
    for share in (0.6, 0.8, 0.9, 0.95, 0.98, 0.99):
        for correlation in (0.03, 0.08, 0.15):
            for _ in range(60):
                found = estimate(marks(rng, clusters, each, share, correlation).ravel(), of)
                held.append(found.low <= share <= found.high)
    # Six streams say little of how much their questions go together, and their intervals err on the wide side.
    assert 0.93 <= np.mean(held) <= (0.985 if clusters < 12 else 0.97)


def test_an_interval_of_means_of_categories_holds_the_truth_too():
    rng, held, tasks = np.random.default_rng(6), [], ["a"] * 1 + ["b"] * 2 + ["c"] * 5
    truth = {"a": 0.55, "b": 0.95, "c": 0.85}
    for _ in range(400):
        parts = [marks(rng, 40, tasks.count(name), share, 0.08) for name, share in truth.items()]
        found = estimate(np.concatenate(parts, axis=1).ravel(), names(40, 8), tasks * 40)
        held.append(found.low <= np.mean(list(truth.values())) <= found.high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_bare_resampling_held_the_truth_far_less_often_near_the_ceiling():
    rng, held = np.random.default_rng(7), []
    for _ in range(300):
        totals = marks(rng, 38, 8, 0.995, 0.08).sum(1)
        drawn = totals[rng.integers(0, 38, (500, 38))].sum(1) / (38 * 8)
        held.append(np.percentile(drawn, 2.5) <= 0.995 <= np.percentile(drawn, 97.5))
    assert np.mean(held) < 0.85


def test_a_perfect_or_hopeless_score_has_an_interval():
    perfect, hopeless = estimate([1.0] * 1600, names(200, 8)), estimate([0.0] * 1600, names(200, 8))
    assert perfect.value == perfect.high == 1.0 and 0.99 < perfect.low < 0.998
    assert hopeless.low == 0.0 and hopeless.high == pytest.approx(1 - perfect.low)
    assert estimate([1.0] * 8, names(1, 8)).low < 0.75
    assert np.isnan(estimate([], []).value)


def pair(rng: np.random.Generator, clusters: int, each: int, share: float, worse_by: float) -> np.ndarray:
    """Differences of two systems that agree in four answers of five; the second is worse by so much, not evenly."""
    first, other = marks(rng, clusters, each, share, 0.08), marks(rng, clusters, each, share, 0.08)
    second = np.where(rng.random((clusters, each)) < 0.8, first, other)
    spoilt = rng.random((clusters, each)) < worse_by / share * rng.uniform(0, 2, (clusters, 1))
    return (np.where(spoilt, 0.0, second) - first).ravel()


@pytest.mark.parametrize(("clusters", "each"), TABLES[:3])
def test_equals_are_told_apart_in_5_of_100_comparisons_at_most(clusters, each):
    rng, of, false = np.random.default_rng(8), names(clusters, each), []
    for share in (0.7, 0.9, 0.98):
        false += [paired_gap(pair(rng, clusters, each, share, 0.0), of).p <= 0.05 for _ in range(60)]
    assert np.mean(false) <= 0.05


def test_the_test_is_exact_where_every_way_to_flip_is_tried():
    # Of all 256 signs of eight clusters' totals, equally likely among equals, at most 5 % may be called a difference.
    sizes = np.arange(1.0, 9.0) / 8
    signs = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1)
    found = [paired_gap(row, [str(n) for n in range(8)]).p for row in signs * sizes]
    assert np.mean(np.array(found) <= 0.05) <= 0.05 and min(found) == 2 / 256


def test_an_interval_of_a_gap_holds_the_true_gap():
    rng, of, held = np.random.default_rng(9), names(38, 8), []
    for worse_by in (0.0, 0.03, 0.1):
        for _ in range(250):
            found = paired_gap(pair(rng, 38, 8, 0.8, worse_by), of)
            held.append(found.low <= -worse_by <= found.high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_table_of_equals_has_a_verdict_in_5_of_100_tables_at_most():
    rng, of, tables = np.random.default_rng(10), names(25, 8), []
    for _ in range(60):
        ps = [paired_gap(pair(rng, 25, 8, 0.9, 0.0), of).p for _ in range(8)]
        tables.append(min(holm(ps)) <= 0.05)
    assert np.mean(tables) <= 0.05


def test_one_discordant_answer_in_each_of_four_clips_proves_nothing():
    found = paired_gap(([1.0] + [0.0] * 7) * 4, names(4, 8))
    assert found.p == 2 / 16 and found.low < 0 < found.high


def test_no_discordant_answer_at_all_still_leaves_room():
    found = paired_gap([0.0] * 1600, names(200, 8))
    assert found.p == 1.0 and found.gap == 0.0 and -0.006 < found.low < -0.001 and found.high == -found.low
    assert paired_gap([], []).p == 1.0


def test_a_clear_gap_is_found_and_its_sign_is_right():
    rng = np.random.default_rng(11)
    gaps = pair(rng, 38, 8, 0.8, 0.15)
    ours, theirs = paired_gap(gaps, names(38, 8)), paired_gap(-gaps, names(38, 8))
    assert ours.p < 0.001 and ours.high < 0 < theirs.low and ours.gap == -theirs.gap


def test_corrections_are_holm_s():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_what_a_table_can_see_is_seen_in_four_of_five_tables():
    rng, of = np.random.default_rng(12), names(38, 8)
    spread = np.mean([paired_gap(pair(rng, 38, 8, 0.8, 0.05), of).spread for _ in range(20)])
    gap = detectable(float(spread), tests=1)
    found = [paired_gap(pair(rng, 38, 8, 0.8, gap), of).p <= 0.05 for _ in range(100)]
    assert 0.65 <= np.mean(found) <= 0.92
    assert detectable(0.01, tests=66) > detectable(0.01, tests=1) == pytest.approx(0.028, abs=0.001)
