"""Stories: short scripted clips, each family about one thing that the levels themselves do not ask.

Answers are drawn before the script is written, so that none is likelier than another. A story plays on the ground, with
the camera, noise and damage, of a level.
"""

from onlooker.core.records import QueryRecord
from onlooker.world.crowd import make_ground
from onlooker.world.episode import Episode, Split
from onlooker.world.generate import seeded
from onlooker.world.levels import level_named
from onlooker.world.stories import ages, faces, gaze, occlusion, rates, spoken
from onlooker.world.stories._base import Draft, Story, Told

STORIES: dict[str, Story] = {
    "occlusion": occlusion.STORY, "rates": rates.STORY, "faces": faces.STORY, "spoken": spoken.STORY,
    "ages": ages.STORY, "gaze": gaze.STORY,
}  # fmt: skip
"""Name to family."""


def make_story(name: str, seed: int, split: Split, level: str = "L2") -> tuple[Episode, list[QueryRecord], Told]:
    """The clip of this family, seed and split, its questions in order of time, and what was told.

    Raises `KeyError` for another name and `InputError` for a level that has no ground of its own (L0).
    """
    rng, chosen = seeded(f"{split}/story/{name}/{level}/{seed}"), level_named(level)
    told = STORIES[name].tell(rng, chosen, split)
    episode = Episode(
        seed, split, f"story_{name}", told.duration_s, 0.0, told.sprites, make_ground(rng, chosen, told.duration_s),
        rng.getrandbits(30), level=level,
    )  # fmt: skip
    return episode, [_record(episode, name, number, draft) for number, draft in enumerate(told.drafts)], told


def _record(episode: Episode, name: str, number: int, draft: Draft) -> QueryRecord:
    return QueryRecord(
        id=f"{episode.id}-{number}-{draft.form}", video=episode.id, benchmark=f"story_{name}", task=draft.form,
        family="backward", ask_time=draft.at, question=draft.question, answer=draft.answer, answer_type=draft.kind,
        options=draft.options, evidence=draft.evidence, windows=draft.windows,
        test_points=tuple({"t": at, "expect": expected} for at, expected in draft.points),
        meta={"form": draft.form, "level": episode.level, "story": name} | draft.meta,
    )  # fmt: skip


__all__ = ["STORIES", "Draft", "Story", "Told", "make_story"]
