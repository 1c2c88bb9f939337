"""What notes tell is counted against what happens, to the second or one beside it, and each thing once."""

import numpy as np

from benchmarks.note_recall import counted, told_by
from onlooker.world import make_episode
from recipes.pocket.told import Happening, Script


def test_notes_are_counted_to_the_second_and_each_thing_once():
    episode = make_episode(1, "validation", 20.0, "long", level="L0")
    script = Script(episode, np.arange(20.0), 0, 20, 0)
    happened = ((4, "red star came"), (9, "red star left"), (9, "blue ring came"), (12, "blue ring changed pink"))
    script.happenings = [Happening(frame, frame, what) for frame, what in happened]
    told = told_by(["[00:04] red star came blue ring came", "[00:10] red star left\n[00:10] red star left", "no time"])
    assert told == [(4, "red star came"), (4, "blue ring came"), (10, "red star left"), (10, "red star left")]
    found = counted(script, told)
    assert (found["came wanted"], found["came told"], found["came right"]) == (2, 2, 1)
    assert (found["left wanted"], found["left told"], found["left right"]) == (1, 2, 1)
    assert found["changed wanted"] == 1 and "changed told" not in found
