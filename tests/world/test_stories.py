"""Stories: what a question states is in the pictures, no answer is likelier than another, and no clock tells."""

import math
from collections import Counter

import numpy as np
import pytest

from onlooker.evals.blind import blind_tables, guesses
from onlooker.world import faces, rasterise, render_tables
from onlooker.world.ask_level import AGES_S
from onlooker.world.lexicon import ACROSS, COUNTS
from onlooker.world.stories import STORIES, make_story, occlusion, spoken
from onlooker.world.stories.ages import APART_S, MOST_COUNT


def owners(episode, times) -> np.ndarray:
    """Which slot shows at each pixel, `[frames, rows, cols]`."""
    return rasterise(render_tables([episode], np.array([times]))).owner[0].numpy()


def middle(owner: np.ndarray, slot: int) -> tuple[float, float] | None:
    """Where a slot shows, in shares of the frame, or None."""
    rows, cols = np.nonzero(owner == slot)
    return (float(cols.mean()) / owner.shape[1], float(rows.mean()) / owner.shape[0]) if len(rows) else None


def told(name: str, num: int, split="test", level="L2"):
    return [make_story(name, seed, split, level) for seed in range(num)]


@pytest.mark.parametrize("name", sorted(STORIES))
def test_a_story_is_the_same_again_and_nobody_answers_it_blindly(name):
    first, again = make_story(name, 3, "test"), make_story(name, 3, "test")
    assert first[1] == again[1] and first[0] == again[0]
    assert make_story(name, 3, "validation")[1] != first[1]
    queries = [query for _, asked, _ in told(name, 300) for query in asked]
    assert len({query.id for query in queries}) == len(queries)
    for query in queries:
        assert query.answer in query.options or query.test_points
        assert all(0 <= start <= end <= query.ask_time + 1e-6 for start, end in query.evidence)
        assert query.ask_time <= 2700
    for table in blind_tables(guesses(queries)):
        assert table.gain - 2 * table.noise <= 0.03, table
    yes = Counter(query.answer for query in queries if query.answer in ("yes", "no"))
    assert not yes or abs(yes["yes"] - yes["no"]) < 4 * math.sqrt(yes.total())


def test_look_alikes_are_hidden_when_they_meet_and_come_out_where_it_is_said():
    for episode, queries, _ in told("occlusion", 8, level="L3"):
        late = queries[0].ask_time
        before, hidden, after = owners(episode, [0.8, occlusion.HIDDEN_AT_S, late])
        assert middle(hidden, 0) is middle(hidden, 1) is None and middle(hidden, 6)
        x, y = middle(after, 6)
        for slot, query in enumerate(queries):
            assert middle(before, slot)
            dx, dy = (a - b for a, b in zip(middle(after, slot), (x, y), strict=True))
            side = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("bottom" if dy > 0 else "top")
            assert side == query.answer
        one, two = (sprite for sprite in episode.sprites if sprite.slot < 2)
        assert (one.shape, one.colours, one.size) == (two.shape, two.colours, two.size)
        (off,) = (one if one.slot == 0 else two).hidden
        (dark,) = owners(episode, [sum(off) / 2])
        assert middle(dark, 0) is None and middle(dark, 1)


def test_rates_are_in_pictures_eight_times_a_second():
    for episode, queries, _ in told("rates", 6):
        times = np.arange(0, 8, 1 / 8)
        seen = owners(episode, times)
        found = {}
        for sprite in episode.sprites:
            shown = np.array([middle(owner, sprite.slot) is not None for owner in seen])
            found[sprite.name] = {"blinks": int((np.diff(shown.astype(int)) < 0).sum())}
            if sprite.motion.kind == "circle":
                places = np.array([episode.shots[0].place(*sprite.motion.at(t - sprite.start_s), t) for t in times])
                way = places - np.array([middle(owner, sprite.slot) for owner in seen])
                assert np.abs(way).max() < 0.05, "the pictures follow the script"
                raw = np.array([sprite.motion.at(t - sprite.start_s) for t in times])
                raw -= [sprite.motion.x, sprite.motion.y]
                turns = np.unwrap(np.arctan2(raw[:, 1], raw[:, 0]))
                found[sprite.name]["turns"] = turns[-1] - turns[0]
        for query in queries:
            if query.task == "blinks_faster":
                assert query.answer == max(query.options, key=lambda name: found[name]["blinks"])
            elif query.task == "turns_faster":
                assert query.answer == max(query.options, key=lambda name: abs(found[name]["turns"]))
            else:
                name = query.question.removesuffix(" go?").split()[-1]
                # Rows run downwards, so that growing angles go clockwise.
                assert query.answer == ("clockwise" if found[name]["turns"] > 0 else "anticlockwise")


def test_faces_are_ninety_six_and_a_third_is_never_trained_on():
    tones = faces.face_tones(48, 1.12)
    assert len({tone.tobytes() for tone in tones}) == faces.NUM_FACES == 96
    new = [face for face in range(96) if faces.is_new(face)]
    assert len(new) == 32
    for part in range(3):
        assert {faces.attributes(face)[part] for face in new} == set(range((4, 4, 6)[part]))
    trained = {face for _, queries, _ in told("faces", 150, "train") for face in queries[0].meta["faces"]}
    assert trained == set(range(96)) - set(new)
    assert {q[0].meta["new_face"] for _, q, _ in told("faces", 30)} == {True, False}


def test_the_last_face_is_an_earlier_one_or_differs_in_one_attribute():
    for episode, queries, _ in told("faces", 40):
        *earlier, probe = queries[0].meta["faces"]
        if queries[0].answer == "yes":
            where = queries[2].answer
            assert earlier.count(probe) == 1 and queries[2].task == "same_face"
            sprite = next(s for s in episode.sprites if s.pattern == probe and s.slot < 4)
            assert ACROSS[min(2, int(sprite.motion.x * 3))] == where
        else:
            assert probe not in earlier and any(probe in faces.look_alikes(face) for face in earlier)
    episode, queries, _ = next(story for story in told("faces", 40) if story[1][0].answer == "yes")
    probe = queries[0].meta["faces"][-1]
    ask = queries[0].ask_time
    there = [episode.view(at) for at in (ask, queries[0].evidence[0][0] + 1.0)]
    assert [[seen.sprite.pattern for seen in view] for view in there] == [[probe], [probe]]


def test_a_face_is_drawn_as_its_attributes_say():
    """Two look-alikes at the same place differ in some pixels, and only inside the face."""
    episode, _, _ = make_story("faces", 0, "test")
    sprite = episode.sprites[0]
    at = [sprite.start_s + 1.0]
    tables = render_tables([episode], np.array([at]))
    tables["noise_sigma"] *= 0
    tables["damage"] *= 0
    one = rasterise(tables)
    tables["pattern"][0, 0, sprite.slot] = faces.look_alikes(sprite.pattern)[0]
    other = rasterise(tables)
    differs = (one.images != other.images).any(-1)[0, 0].numpy()
    inside = one.owner[0, 0].numpy() == sprite.slot
    # What of a soft edge is outside by the owner's rule may differ by a shade.
    assert differs.sum() > 10 and (differs & ~inside).sum() <= 0.1 * differs.sum()


def test_side_text_is_timed_and_now_and_then_wrong():
    wrong = lines = 0
    for episode, queries, story in told("spoken", 60):
        comment = next(line for line in story.side if line["kind"] == "comment")
        (seen,) = list(episode.view(comment["t0"]))
        question = {query.task: query for query in queries}
        assert seen.sprite.name == question["named_shape"].answer
        assert seen.colour == question["named_colour"].answer
        assert ACROSS[min(2, int(seen.sprite.motion.x * 3))] == question["named_place"].answer
        said = comment["text"].removeprefix("i call this one ").removesuffix(".")
        assert (said in question["was_named"].question) == (question["was_named"].answer == "yes")
        assert max(line["t0"] for line in story.side) < min(query.ask_time for query in queries)
        speech = [line for line in story.side if line["kind"] == "speech"]
        for sprite, line in zip(episode.sprites, sorted(speech, key=lambda line: line["t0"]), strict=True):
            assert abs(line["t0"] - sprite.start_s - 0.5) <= 1.5
            lines += 1
            wrong += f"{sprite.colour_at(sprite.start_s)} {sprite.name}" not in line["text"]
    assert 0.5 * spoken.WRONG < wrong / lines < 1.6 * spoken.WRONG


def test_evidence_is_of_every_age_and_counts_go_beyond_any_window():
    buckets, highest = Counter(), 0
    for episode, queries, _ in told("ages", 400):
        asked = next(query for query in queries if query.task == "old_place")
        start, gone = asked.evidence[0]
        age, bucket = asked.meta["age_s"], asked.meta["bucket"]
        assert age == pytest.approx(asked.ask_time - gone, abs=1e-3)
        assert AGES_S[bucket] <= age < [*AGES_S[1:], 2401.0][bucket]
        buckets[bucket] += 1
        special = next(sprite for sprite in episode.sprites if sprite.start_s == start)
        look = (special.shape, special.colours[0][1])
        assert sum((s.shape, s.colours[0][1]) == look for s in episode.sprites) == 1
        assert ACROSS[min(2, int(special.motion.x * 3))] == asked.answer
        assert [s.sprite.id for s in episode.view(special.start_s + 1) if s.sprite.id == special.id] == [special.id]
        for query in queries:
            if query.task == "old_order":
                (a, b), (c, _d) = query.evidence
                assert c - b >= APART_S - 1e-6, "two events further apart than a window"
                assert query.answer == next(s for s in episode.sprites if s.start_s == a).name
            if query.task == "old_count":
                came = sum(gone < sprite.start_s <= query.ask_time for sprite in episode.sprites)
                assert str(came) == query.answer
                highest = max(highest, came)
    assert len(buckets) == len(AGES_S) == 8 and min(buckets.values()) > 30
    assert highest >= MOST_COUNT and highest > int(COUNTS[-1])


def test_the_dot_rests_on_what_the_wearer_is_said_to_look_at():
    for episode, queries, _ in told("gaze", 12, level="L1"):
        things = {s.slot: s for s in episode.sprites if s.slot != 6}

        def on(at: float, episode=episode, things=things) -> str:
            view = {seen.sprite.slot: seen for seen in episode.view(at)}
            dot = view[6]
            near = min(things, key=lambda slot: math.hypot(view[slot].x - dot.x, view[slot].y - dot.y))
            return things[near].name

        rests = sorted(s.start_s for s in episode.sprites if s.slot == 6)
        for query in queries:
            at = query.ask_time
            past = [on(start + 0.1) for start in rests if start <= at - 0.1]
            if query.task == "gaze_now":
                assert on(at) == query.answer
            elif query.task == "gaze_before":
                assert past[-2] == query.answer
            elif query.task == "gaze_count":
                name = query.question.removesuffix("?").split()[-1]
                assert str(past.count(name)) == query.answer
            elif query.task == "gaze_ever":
                name = query.question.removesuffix(" so far?").split()[-1]
                assert (name in past) == (query.answer == "yes")
            else:
                (point,) = query.test_points
                name = query.question.removesuffix(".").split()[-1]
                assert (on(point["t"]) == name) == (point["expect"] == "yes")
        owner = owners(episode, [queries[0].ask_time])[0]
        assert (owner == 6).sum() > 30, "the dot is to be seen"
