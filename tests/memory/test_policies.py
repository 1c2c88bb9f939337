"""Promises that every memory policy keeps, checked over random streams without a model."""

import dataclasses
import itertools
import random

import pytest
import torch

from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Span, Tier
from onlooker.memory._recent import WindowState, highest, levelled
from onlooker.memory.full import Full
from onlooker.memory.last_frames import LastFrames
from onlooker.memory.rekv import ReKV
from onlooker.memory.select_recent import SelectRecent
from onlooker.memory.sliding_window import SlidingWindow

NAMES = [name for name in registry.names("memory") if not registry.make("memory", name).holds_tokens]
SMALL = [
    Full(),
    SlidingWindow(window_tokens=50),
    SlidingWindow(window_tokens=None, window_frames=4),
    ReKV(topk=3, recent=2, window_tokens=40),
    ReKV(topk=3, recent=0, window_tokens=40, max_parked=5),
    ReKV(topk=0, recent=1, window_tokens=1, max_parked=0),
    ReKV(topk=3, recent=2, first=2, window_tokens=40, max_parked=5),
    ReKV(topk=3, recent=2, first=2, window_tokens=40, max_parked=5, thin=True),
    ReKV(topk=3, recent=2, window_tokens=40, max_parked=0, thin=True),
]


class CountingSpans(list):
    """A list of spans that counts how often it is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += len(range(*index.indices(len(self)))) if isinstance(index, slice) else 1
        return super().__getitem__(index)

    def __iter__(self):
        self.reads += len(self)
        return super().__iter__()


def carry_out(spans: list[Span], plan: Plan) -> None:
    """What the store does with a plan."""
    named = plan.park + plan.forget
    assert list(plan.park) == sorted(plan.park) and list(plan.forget) == sorted(plan.forget)
    assert len(set(named)) == len(named), "a block is named twice"
    by_id = {span.id: span for span in spans}
    for block in named:
        assert by_id[block].kind != "prefix"
    assert all(by_id[block].tier is Tier.DEVICE for block in plan.park)
    kept = [span for span in list(spans) if span.id not in plan.forget]
    spans[:] = [dataclasses.replace(span, tier=Tier.HOST) if span.id in plan.park else span for span in kept]


def live(policy, seed: int, num_blocks: int = 120, prefix: bool = True):
    """Spans and state after every block of a random stream."""
    chance, spans, state = random.Random(seed), CountingSpans(), policy.new_state()
    for number in range(num_blocks):
        kind = "prefix" if prefix and not number else chance.choice(["vision"] * 6 + ["text"])
        spans.append(Span(number, kind, chance.randrange(1, 15), float(number), float(number)))
        spans.reads = 0
        plan = policy.plan(spans, state)
        reads = spans.reads
        carry_out(spans, plan)
        yield spans, state, plan, reads


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("policy", [*(registry.make("memory", name) for name in NAMES), *SMALL], ids=repr)
def test_plans_and_recalls_are_ordered_disjoint_and_known(policy, prefix):
    for seed in range(3):
        for spans, state, _, _ in live(policy, seed, prefix=prefix):
            before = repr(state)
            scores = torch.randn(len(spans)) if policy.scores_layers else None
            recall = policy.recall(tuple(spans), scores, state)
            assert isinstance(recall, Recall) and repr(state) == before, "recall changed the state"
            assert list(recall.blocks) == sorted(set(recall.blocks))
            assert set(recall.blocks) <= {span.id for span in spans}
            assert not prefix or recall.blocks[0] == 0
            # A restricted question (at, since) hands over fewer spans.
            some = tuple(span for span in spans if span.kind == "prefix" or span.id % 2)
            fewer = policy.recall(some, scores[: len(some)] if scores is not None else None, state)
            assert set(fewer.blocks) <= {span.id for span in some}


@pytest.mark.parametrize("policy", SMALL, ids=repr)
def test_a_plan_costs_what_changed_not_what_is_stored(policy):
    reads = [(reads, len(plan.park) + len(plan.forget)) for _, _, plan, reads in live(policy, 1, 2000)]
    assert max(count - 3 * changed for count, changed in reads) <= 8


@pytest.mark.parametrize("policy", SMALL, ids=repr)
def test_a_forked_or_restored_state_goes_on_alike(policy):
    for number, (spans, state, _, _) in enumerate(live(policy, 2)):
        if number == 60:
            twin, restored, copy = state.fork(), policy.new_state(), list(spans)
            restored.load(*state.export())
            more = [*copy, Span(900, "vision", 14, 900.0, 900.0)]
            plans = {policy.plan(list(more), s) for s in (twin, restored)}
            assert len(plans) == 1 and repr(twin) == repr(restored)


def test_windows_are_bounded():
    for policy, tokens, blocks in (
        (SMALL[1], 50, 120),
        (SMALL[2], 10**6, 4),
        (SMALL[3], 40, 120),
    ):
        for spans, _, _, _ in live(policy, 3):
            window = [span for span in spans if span.kind != "prefix" and span.tier is Tier.DEVICE]
            assert len(window) <= blocks and (sum(span.num_tokens for span in window) <= tokens or len(window) == 1)
    for policy in (SMALL[4], SMALL[7], SMALL[6]):
        for spans, _, _, _ in live(policy, 3):
            assert sum(span.tier is Tier.HOST for span in spans) <= 5
    assert [span.id for span in spans[:3]] == [0, 1, 2], "the first blocks are kept when others are forgotten"


@pytest.mark.parametrize("first", [0, 3])
def test_a_bounded_past_may_be_thinned_out_evenly(first):
    policy = ReKV(window_tokens=1, max_parked=64, first=first, thin=True)
    spans, state = [Span(0, "prefix", 3, 0.0, 0.0)], policy.new_state()
    for number in range(1, 1200):
        spans.append(Span(number, "vision", 1, float(number), float(number)))
        carry_out(spans, policy.plan(spans, state))
        if number > 200:
            parked = [span.id for span in spans if span.tier is Tier.HOST]
            gaps = [b - a for a, b in itertools.pairwise(parked)]
            assert len(parked) == 64 and parked[:first] == list(range(1, first + 1))
            assert max(gaps) <= 8 * number / 64, "no part of the past is left out"
    dropped = ReKV(window_tokens=1, max_parked=64, first=first)
    assert dropped.new_state() == WindowState()


def test_of_equal_scores_rekv_recalls_the_older_block():
    spans = [Span(0, "prefix", 3, 0.0, 0.0), *(Span(i, "vision", 4, float(i), float(i)) for i in range(1, 400))]
    policy, scores = ReKV(topk=5, recent=0), torch.zeros(len(spans))
    scores[40] = 1.0
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 2, 3, 4, 40)


def test_rekv_recalls_the_best_and_the_newest_in_time_order():
    spans = [Span(0, "prefix", 3, 0.0, 0.0), *(Span(i, "vision", 4, float(i), float(i)) for i in range(1, 11))]
    scores = torch.tensor([99.0, 0.0, 5.0, 1.0, 9.0, 2.0, 7.0, 3.0, 4.0, 50.0, 60.0])
    policy = ReKV(topk=3, recent=2)
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 2, 4, 6, 9, 10)
    policy = ReKV(topk=2, recent=2, first=2)
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 2, 4, 6, 9, 10)
    assert policy.recall(spans[:3], scores[:3], policy.new_state()).blocks == (0, 1, 2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SlidingWindow(window_tokens=0),
        lambda: SlidingWindow(window_tokens=None),
        lambda: LastFrames(frames=0),
        lambda: ReKV(topk=-1),
        lambda: ReKV(window_tokens=0),
        lambda: ReKV(max_parked=-1),
        lambda: ReKV(first=-1),
        lambda: ReKV(first=3, max_parked=2),
        lambda: ReKV(score="best"),
    ],
)
def test_settings_without_sense_are_refused(build):
    with pytest.raises(InputError):
        build()


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_help(name):
    cls = registry.method_class("memory", name)
    assert all(setting.help for setting in registry.settings(cls))
    assert registry.make("memory", registry.describe(cls())) == cls()


def drifting(planted: dict[int, float], slope: float = 0.01) -> tuple[list[Span], torch.Tensor]:
    """Two hundred blocks whose scores rise with time, and some that stand out of that by so much."""
    spans = [Span(0, "prefix", 3, 0.0, 0.0), *(Span(i, "vision", 4, 2.0 * i, 2.0 * i) for i in range(1, 201))]
    rng = torch.Generator().manual_seed(0)
    scores = slope * torch.arange(201.0) + 0.01 * torch.randn(201, generator=rng)
    for block, more in planted.items():
        scores[block] += more
    return spans, scores


def test_a_drift_of_scores_with_time_is_taken_out_when_asked():
    spans, scores = drifting({10: 0.5, 60: 0.4, 150: 0.3})
    late = ReKV(topk=3, recent=0).recall(spans, scores, WindowState()).blocks
    assert min(late[1:]) > 190, "what is late is found, whatever it shows"
    assert ReKV(topk=3, recent=0, level=True).recall(spans, scores, WindowState()).blocks == (0, 10, 60, 150)
    wanted = (0, 1, 10, 60, 199, 200)
    assert SelectRecent(recent=2, budget=2, level=True).recall(spans, scores, WindowState()).blocks == wanted
    assert SelectRecent(recent=2, budget=2).recall(spans, scores, WindowState()).blocks == (0, 1, 199, 200)


def test_without_a_drift_taking_it_out_changes_nothing():
    spans, scores = drifting({10: 0.5, 60: 0.4, 150: 0.3}, slope=0.0)
    for policy in (ReKV(topk=3, recent=2), SelectRecent(recent=2, budget=3, bar=0)):
        plain, level = (policy, dataclasses.replace(policy, level=True))
        assert plain.recall(spans, scores, WindowState()) == level.recall(spans, scores, WindowState())
    flat = torch.full((201,), 0.5)
    assert torch.equal(levelled(flat[:2], spans[:2]), flat[:2]) and torch.allclose(levelled(flat, spans), flat)
    same = [Span(i, "vision", 4, 1.0, 1.0) for i in range(5)]
    assert torch.equal(levelled(flat[:5], same), flat[:5]), "blocks of one moment have no trend"


def test_the_highest_are_those_of_a_stable_sort():
    """Also among equals, and for as many as there are, or none."""
    chance = torch.Generator().manual_seed(0)
    for steps in (3, 10**6):
        scores = (torch.rand(50, generator=chance) * steps).round()
        for count in (0, 1, 7, 49, 50, 60):
            ranked = scores.argsort(descending=True, stable=True)[:count]
            assert highest(scores, count) == ranked.sort().values.tolist()
