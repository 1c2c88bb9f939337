"""Levels L1 to L4: exact at one frame a second, balanced, seldom told by the last frame; L0 stays as it was."""

import hashlib
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from oracle import Oracle

from onlooker.core.errors import InputError
from onlooker.evals.suites import pocketworld
from onlooker.world import (
    LEVEL_NAMES,
    LEVEL_TASKS,
    LEVELS,
    VOCABULARY,
    make_episode,
    rasterise,
    render_tables,
    split_words,
)
from onlooker.world.ask_level import AGES_S, age_bucket
from onlooker.world.lexicon import ACROSS, RADII, UPDOWN

L0_HASHES = [
    "f4880b581e04", "01ce1b6c81bf", "dcd605cb3e70", "3e554d7fe73a",
    "ee89b90b74ab", "d15f5d71a8b2", "7b9f601f9b90", "36f02f1c9fe6",
    "72056ec57367", "a97e8f1c9368", "8b5c99b8646f", "75179a0c5a01",
    "783d9095eaff", "2176759af2f4", "a236cfe91ad6", "ee06d3de3e9c",
    "9d325c9cad5c", "53e88c5d7047", "20ca0cf5b215", "eeeacf1ccd18",
]  # fmt: skip
MEMORY = ("before", "when", "order", "since", "place", "ever")


class LevelOracle(Oracle):
    """Answers the forms that the levels add."""

    def _looking(self, phrase):
        return [[s for s in view if self._is(s, phrase)] for view in self.views]

    def _shift(self, phrase):
        now = self._one([s for s in self.now if self._is(s, phrase)])
        early = next(s for s in self.views[-2] if s.sprite.id == now.sprite.id)
        return now.x - early.x, now.y - early.y

    def _heading(self):
        dx, dy = self._shift(self.meta["thing"])
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("bottom" if dy > 0 else "top")

    def _faster(self):
        one, two = (sum(d * d for d in self._shift(self.meta[key])) for key in ("thing", "other"))
        return self.meta["thing" if one > two else "other"].split()[-1]

    def _where(self, sprite_id):
        seen = next(s for s in self.now if s.sprite.id == sprite_id)
        names, value = (ACROSS, seen.x) if "left" in self.meta["where"] else (UPDOWN, seen.y)
        return names[int(value * 3)]

    def _alike(self):
        ids = [s.sprite.id for s in self.now if self._is(s, self.meta["look"])]
        assert len(ids) == 2
        return ids

    def _older(self):
        return self._where(min(self._alike(), key=lambda i: self._lives()[i][1]))

    def _blinker(self):
        def was_off(sprite_id):
            on = [any(s.sprite.id == sprite_id for s in view) for view in self.views]
            on = on[on.index(True) :]
            return any(b and not a for a, b in itertools.pairwise(on))

        (blinked,) = [i for i in self._alike() if was_off(i)]
        return self._where(blinked)

    def _came_before(self):
        lives = self._lives()
        subject = self._one([s for view in self.views for s in view if self._is(s, self.meta["thing"])]).sprite.id
        return max((v for v in lives.values() if v[1] < lives[subject][1]), key=lambda life: life[1])[0]

    def _first_of_two(self):
        return super()._first_of_two().split()[-1]

    def _came_since(self):
        lives = self._lives()
        subject = self._one([s for view in self.views for s in view if self._is(s, self.meta["thing"])]).sprite.id
        return str(sum(life[1] > lives[subject][2] for life in lives.values()))

    def _came_sofar(self):
        return str(sum(self.meta["things"].startswith(life[0]) for life in self._lives().values()))

    def _last(self):
        return self._one([s for view in self.views for s in view if self._is(s, self.meta["thing"])][-1:])

    def _last_across(self):
        return ACROSS[int(self._last().x * 3)]

    def _last_updown(self):
        return UPDOWN[int(self._last().y * 3)]


@pytest.fixture(scope="module", params=["L1", "L2", "L3"])
def asked(request):
    pairs = []
    for seed in range(300):
        episode = make_episode(seed, "validation", LEVELS[request.param].duration_s, level=request.param)
        pairs += [(episode, record) for record in episode.questions(12, 1)]
    return pairs


def test_l0_gives_the_pictures_it_always_gave():
    """The hash was taken before the levels were added, frame by frame."""
    hashes = []
    for seed, kind in ((0, "mixed"), (3, "mixed"), (1, "pan"), (2, "frozen_noise"), (5, "cuts")):
        episode = make_episode(seed, "test", kind=kind)
        images = rasterise(render_tables([episode], [[0.0, 7.0, 12.5, 23.0]])).images[0].numpy()
        hashes += [hashlib.sha256(image.tobytes()).hexdigest()[:12] for image in images]
    assert hashes == L0_HASHES


def test_every_task_of_a_level_is_asked(asked):
    tasks = Counter(record.task for _, record in asked)
    assert set(tasks) == set(LEVEL_TASKS)
    assert min(tasks.values()) > 15, tasks


def test_an_oracle_at_one_frame_a_second_answers_everything(asked):
    wrong = []
    for episode, record in asked:
        if record.task != "proactive":
            found = LevelOracle(episode, record).answer()
            if found != record.answer:
                wrong.append((found, record))
    assert not wrong, (len(wrong), wrong[:3])


def test_things_that_are_asked_about_can_be_seen(asked):
    for episode, record in asked[::9]:
        for sprite_id in record.meta["sprites"]:
            sprite = episode.sprites[sprite_id]
            times = [[sprite.start_s + 0.2, min(sprite.end_s, episode.duration_s) - (2.1 if sprite.side else 0.1)]]
            owner = rasterise(render_tables([episode], times)).owner[0]
            assert ((owner == sprite.slot).sum((1, 2)) >= 6).all(), (record, sprite)


def test_words_are_few_and_known(asked):
    known = set(VOCABULARY)
    for _, record in asked:
        assert len(record.question.split()) <= 14
        assert known.issuperset(split_words(record.question) + split_words(record.answer)), record
        assert len(set(record.options)) == len(record.options)
        assert record.answer_type == "text" or record.answer in record.options
        assert "{" not in record.question


def test_evidence_is_of_all_ages(asked):
    ages = Counter(age_bucket(record.meta["age_s"]) for _, record in asked if record.task in MEMORY)
    reach = age_bucket(asked[0][0].duration_s)
    shares = [ages[bucket] / ages.total() for bucket in range(min(3, reach + 1))]
    assert min(shares) > 0.12, shares
    assert list(AGES_S) == sorted(AGES_S)


def test_a_standing_request_is_polled_once_and_yes_is_as_likely_as_no(asked):
    delays = defaultdict(Counter)
    for _, record in asked:
        if record.task == "proactive":
            (point,) = record.test_points
            assert (point["expect"] == "yes") == any(a <= point["t"] <= b for a, b in record.windows)
            delays[point["t"] - record.ask_time > 5][point["expect"]] += 1
    for counts in delays.values():
        assert 0.25 < counts["yes"] / counts.total() < 0.75, counts


def test_the_last_frame_seldom_tells(asked):
    told = sum(record.task in ("glance", "proactive") for _, record in asked)
    assert told / len(asked) <= 0.2


def test_the_suite_asks_what_one_frame_tells_half_as_often():
    tasks = Counter(task for place in range(33) for task in pocketworld.tasks_of(place, "L2"))
    assert tasks["glance"] == tasks["proactive"] == 12
    assert {n for task, n in tasks.items() if task not in ("glance", "proactive")} == {24}
    assert len(set(pocketworld.tasks_of(5, "L0"))) == 8


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_what_they_say(level):
    chosen = LEVELS[level]
    episodes = [make_episode(seed, "train", chosen.duration_s, level=level) for seed in range(20)]
    times = np.tile(np.arange(0.0, chosen.duration_s - 0.5, 2.0), (len(episodes), 1))
    tables = render_tables(episodes, times)
    shapes = tables["visible"] & (tables["shape"] <= 8)
    assert shapes.sum(-1).max() <= chosen.most
    assert tables["size"][shapes].max() <= max(RADII[size] for size in chosen.sizes) * (1 + chosen.zoom) + 1e-6
    assert (tables["damage"].max(-1) > 0).any() == (chosen.damage > 0)
    moved = [shot.drift for episode in episodes for shot in episode.shots]
    assert max(np.hypot(*drift) for drift in moved) <= chosen.pan[1] + 1e-9
    if level in ("L3", "L4"):
        assert chosen.pan[1] * 128 > 8, "more than a patch a second"
    for episode in episodes:
        starts = sorted(s.start_s for s in episode.sprites if s.is_shape and s.start_s > 0)
        assert all(b - a >= 1.2 for a, b in itertools.pairwise(starts))


def test_views_and_pictures_agree_under_a_turning_camera():
    for seed in range(6):
        episode = make_episode(seed, "test", 48, level="L3")
        for at in (5.0, 20.0, 40.0):
            tables = render_tables([episode], [[at]])
            for seen in episode.view(at):
                slot = seen.sprite.slot
                found = tables["x"][0, 0, slot], tables["y"][0, 0, slot]
                assert np.allclose(found, (seen.x, seen.y), atol=1e-5)


def test_textures_move_with_the_camera_and_damage_is_of_known_kind():
    episode = next(
        e for seed in range(200)
        if (e := make_episode(seed, "test", 32, level="L2")).shots[0].damage == (0, 0, 0)
        and np.hypot(*e.shots[0].drift) > 0.1 and len(e.shots) == 1
    )  # fmt: skip
    tables = render_tables([episode], [[4.0, 5.0]])
    tables["noise_sigma"] *= 0  # the sensor's noise comes on top of the damage, and would hide what that does
    clean = rasterise(tables).images[0].float()
    assert (clean[0] - clean[1]).abs().mean() > 4
    for kind in range(3):
        spoilt = dict(tables)
        spoilt["damage"] = np.eye(3, dtype=np.float32)[kind].reshape(1, 1, 3).repeat(2, 1)
        images = rasterise(spoilt).images[0].float()
        near = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
        before = (clean[:, :, 1:] - clean[:, :, :-1]).abs().mean()
        assert (near > 1.5 * before) if kind == 2 else (near < 0.9 * before)
    assert torch.equal(rasterise(tables).images[0].float(), clean)


def test_an_unknown_level_is_refused():
    with pytest.raises(InputError, match="no such level"):
        make_episode(0, "test", level="L9")
    assert LEVEL_NAMES[0] == "L0"
