"""Episodes are reproducible, never shared between splits, readable, and cheap for hours."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onlooker.core.errors import InputError
from onlooker.world import COLOURS, KINDS, TASKS, WorldSettings, corpus, make_episode, render_tables, split_words


def fingerprint(episode):
    return hashlib.sha256(repr((episode.sprites, episode.shots, episode.noise_base)).encode()).hexdigest()


def run(code):
    """What a fresh interpreter prints, with another hash seed, at the root of the repository."""
    here = Path(__file__)
    code = f"import sys; sys.path.insert(0, {str(here.parent)!r}); {code}"
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=env,
        cwd=here.parents[2],
    )
    return done.stdout.strip()


def test_the_same_seed_makes_the_same_episode_in_another_process():
    episode = make_episode(11, "train")
    answers = [record.answer for record in episode.questions(6, 2)]
    code = "from test_episodes import *; e = make_episode(11, 'train'); "
    assert (
        run(code + "print(fingerprint(e), [r.answer for r in e.questions(6, 2)])")
        == f"{fingerprint(episode)} {answers}"
    )


def test_importing_the_world_does_not_import_torch():
    code = "import onlooker.world as w; w.make_episode(0, 'train').questions(2, 0); print('torch' in sys.modules)"
    assert run(code) == "False"


def test_splits_never_mix():
    prints = [
        fingerprint(make_episode(seed, split)) for seed in range(100) for split in ("train", "validation", "test")
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("kind", KINDS)
def test_things_are_few_apart_and_last(kind):
    settings = WorldSettings()
    for seed in range(15):
        episode = make_episode(seed, "test", 400.0 if kind == "long" else 24.0, kind)
        for sprite in episode.sprites:
            assert sprite.end_s - sprite.start_s >= 1.2
            assert all(b - a >= 1.2 for a, b in sprite.hidden)
            for steps in (sprite.colours, sprite.texts):
                times = [at for at, _ in steps] + [sprite.end_s]
                assert all(b - a >= 1.2 for a, b in itertools.pairwise(times))
                assert all(a[1] != b[1] for a, b in itertools.pairwise(steps))
        for at in np.arange(0, episode.duration_s, 0.7):
            slots = [s.slot for s in episode.sprites_between(at, at) if s.start_s <= at < s.end_s]
            assert len(set(slots)) == len(slots) <= settings.max_visible + 1


def test_tables_agree_with_the_view():
    episode = make_episode(4, "test", 24.0, "mixed")
    times = np.arange(0, 24, 0.5)
    tables = render_tables([episode], times[None])
    names = list(COLOURS)
    for index, at in enumerate(times):
        view = episode.view(float(at))
        assert [s.sprite.slot for s in view] == list(np.flatnonzero(tables["visible"][0, index]))
        for seen in view:
            slot = seen.sprite.slot
            assert tables["x"][0, index, slot] == pytest.approx(seen.x, abs=1e-5)
            assert tables["y"][0, index, slot] == pytest.approx(seen.y, abs=1e-5)
            assert tables["sprite"][0, index, slot] == seen.sprite.id
            colour = tables["colour_id"][0, index, slot]
            assert (names[colour - 1] if colour else "") == seen.colour


def test_needles_may_be_kept_to_the_start():
    anywhere = make_episode(2, "test", 2100.0, "long")
    assert make_episode(2, "test", 2100.0, "long", settings=WorldSettings(needle_until=1.0)) == anywhere
    early = make_episode(2, "test", 2100.0, "long", settings=WorldSettings(needle_until=0.15))
    assert len(early.needles) >= 3
    assert all(early.sprites[needle].end_s <= 0.15 * 2100 for needle in early.needles)
    with pytest.raises(InputError):
        WorldSettings(needle_until=0.0)


def test_hours_are_cheap_and_needles_are_single():
    episode = make_episode(2, "test", 3 * 3600.0, "long", settings=WorldSettings(needle_depth=0.5))
    assert len(episode.needles) >= 3
    needle = episode.sprites[episode.needles[0]]
    assert abs(needle.start_s / episode.duration_s - 0.5) < 0.02
    for index in episode.needles:
        needle = episode.sprites[index]
        others = [s for s in episode.sprites if s.id != index]
        if needle.texts:
            assert not any(text == needle.texts[0][1] for s in others for _, text in s.texts)
        else:
            pair = (needle.shape, needle.colours[0][1])
            assert not any((s.shape, colour) == pair for s in others for _, colour in s.colours)
    assert max(len(episode.sprites_between(at, at + 1)) for at in range(0, 10800, 7)) <= 16


def test_all_tasks_can_be_asked_after_half_an_hour():
    episode = make_episode(3, "test", 3600.0, "long")
    assert len({record.task for record in episode.questions(48, 0, between_s=(1800.0, 3590.0))}) == len(TASKS)


def test_quiet_spans_hold_no_event():
    episode = make_episode(8, "train")
    events = [at for s in episode.sprites for at in (s.start_s, *(t for t, _ in s.colours), *(t for t, _ in s.texts))]
    for begin, end in episode.quiet():
        assert not any(begin < at < end for at in events)


def test_the_corpus_is_fixed_and_holds_all_words():
    assert list(corpus()) == list(corpus())
    assert {"star", "crosses", "cyan", "fish", "above", "[", "7"} <= {
        word for line in corpus() for word in split_words(line)
    }


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_episode(0, "dev"), "split"),
        (lambda: make_episode(0, "train", kind="odd"), "kind"),
        (lambda: make_episode(0, "train", 1.0), "seconds"),
        (lambda: WorldSettings(max_visible=9), "max_visible"),
        (lambda: WorldSettings(gap_s=0.2), "gap_s"),
        (lambda: render_tables([make_episode(0, "train")], [[0.0], [1.0]]), "times"),
    ],
)
def test_wrong_settings_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
