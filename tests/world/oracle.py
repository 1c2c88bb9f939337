"""Answers questions from what one frame a second shows, and nothing else: proof that they can be answered."""

import itertools

from onlooker.world.lexicon import ACROSS, LAMP_ID, PATTERNS, RELATIONS, SIZES, UPDOWN


class Oracle:
    """Watches `episode` at `phase, phase + 1, ...` up to a question's time."""

    def __init__(self, episode, record, phase=0.0):
        self.record, self.meta, self.phase = record, record.meta, phase
        count = int(record.ask_time - phase) + 1
        self.times = [phase + k for k in range(count)]
        self.views = [episode.view(at) for at in self.times]
        self.now = self.views[-1]
        self.shapes = [seen for seen in self.now if seen.sprite.is_shape]

    def answer(self):
        return getattr(self, "_" + self.meta["form"])()

    def _is(self, seen, phrase):
        words = phrase.removeprefix("the ").removeprefix("an ").removeprefix("a ").split()
        return seen.sprite.name == words[-1] and (len(words) == 1 or seen.colour == words[0])

    def _one(self, found):
        assert len({seen.sprite.id for seen in found}) == 1, (self.record, found)
        return found[0]

    def _thing(self):
        return self._one([seen for seen in self.now if self._is(seen, self.meta["thing"])])

    def _track(self, phrase):
        """(time, seen or None) of the one thing of that name."""
        rows = [(at, [s for s in view if self._is(s, phrase)]) for at, view in zip(self.times, self.views, strict=True)]
        assert all(len(found) < 2 for _, found in rows)
        return [(at, found[0] if found else None) for at, found in rows]

    def _trace(self):
        """(time, seen or None) of the thing that bears the name now."""
        subject = self._thing().sprite.id
        rows = zip(self.times, self.views, strict=True)
        return [(at, next((s for s in view if s.sprite.id == subject), None)) for at, view in rows]

    def _runs(self, values):
        return [value for index, value in enumerate(values) if index == 0 or value != values[index - 1]]

    # now
    def _shape_by_colour(self):
        return self._one([s for s in self.shapes if s.colour == self.meta["colour"]]).sprite.name

    def _shape_by_pattern(self):
        return self._one([s for s in self.shapes if PATTERNS[s.sprite.pattern] == self.meta["pattern"]]).sprite.name

    def _shape_by_place(self):
        place = self.meta["place"]
        value = {"left": lambda s: s.x, "right": lambda s: 1 - s.x, "top": lambda s: s.y, "bottom": lambda s: 1 - s.y}[
            place
        ]
        return self._one([s for s in self.shapes if value(s) < 1 / 3]).sprite.name

    def _shape_only(self):
        return self._one(self.shapes).sprite.name

    def _colour_now(self):
        return self._thing().colour

    def _size_now(self):
        return SIZES[self._thing().sprite.size]

    def _pattern_now(self):
        return PATTERNS[self._thing().sprite.pattern]

    def _word_now(self):
        return self._one([s for s in self.now if s.text]).text

    _number_now = _word_now

    def _count_all(self):
        return str(len(self.shapes))

    def _count_shape(self):
        return str(sum(self.meta["things"].startswith(s.sprite.name) for s in self.shapes))

    def _count_colour(self):
        return str(sum(s.colour == self.meta["colour"] for s in self.shapes))

    def _across(self):
        return ACROSS[int(self._thing().x * 3)]

    def _updown(self):
        return UPDOWN[int(self._thing().y * 3)]

    def _beside(self):
        subject = self._thing()
        side = next(key for key, value in RELATIONS.items() if value == self.meta["relation"])
        axis, sign = ("x" if side in ACROSS else "y"), (-1 if side in ("left", "top") else 1)
        return self._one(
            [s for s in self.shapes if sign * (getattr(s, axis) - getattr(subject, axis)) > 0.06]
        ).sprite.name

    # past
    def _colour_before(self):
        return self._runs([s.colour for _, s in self._trace() if s])[-2]

    def _texts(self):
        return self._runs([s.text for view in self.views for s in view if s.text])

    def _word_before(self):
        return self._texts()[-2]

    _number_before = _word_before

    def _clock(self, at):
        whole = int(at - self.phase)
        return f"[{whole // 60:02d}:{whole % 60:02d}]"

    def _when_appeared(self):
        return self._clock(next(at for at, seen in self._track(self.meta["thing"]) if seen))

    def _when_left(self):
        return self._clock(max(at for at, seen in self._track(self.meta["thing"]) if seen) + 1)

    def _when_changed(self):
        track = [(at, seen.colour) for at, seen in self._trace() if seen]
        return self._clock(max(b[0] for a, b in itertools.pairwise(track) if a[1] != b[1]))

    def _when_word(self):
        word = self.meta["word"]
        rows = zip(self.times, self.views, strict=True)
        return self._clock(next(at for at, view in rows if any(s.text == word for s in view)))

    def _lives(self):
        """sprite id -> (name, index of its first frame, index of its last frame), shapes only."""
        lives = {}
        for index, view in enumerate(self.views):
            for seen in view:
                if seen.sprite.is_shape:
                    lives.setdefault(seen.sprite.id, [seen.sprite.name, index, index])[2] = index
        return lives

    def _came_first(self):
        return min(self._lives().values(), key=lambda life: life[1])[0]

    def _came_last(self):
        return max(self._lives().values(), key=lambda life: life[1])[0]

    def _gone(self):
        # A shape that blinks is out for two frames at most.
        return [life for life in self._lives().values() if life[2] < len(self.views) - 1]

    def _left_first(self):
        return min(self._gone(), key=lambda life: life[2])[0]

    def _left_last(self):
        return max(self._gone(), key=lambda life: life[2])[0]

    def _came_after(self):
        lives = self._lives()
        subject = self._one([s for view in self.views for s in view if self._is(s, self.meta["thing"])]).sprite.id
        return min((life for life in lives.values() if life[1] > lives[subject][1]), key=lambda life: life[1])[0]

    def _first_of_two(self):
        phrases = [self.meta[key] for key in ("thing", "other")]
        firsts = [next(i for i, (_, seen) in enumerate(self._track(phrase)) if seen) for phrase in phrases]
        return phrases[firsts.index(min(firsts))].removeprefix("the ")

    def _blinks(self):
        on = [seen is not None for _, seen in self._trace()]
        on = on[on.index(True) :]
        return str(sum(b and not a for a, b in itertools.pairwise(on)))

    def _changes(self):
        return str(len(self._runs([s.colour for _, s in self._trace() if s])) - 1)

    def _ever_thing(self):
        return "yes" if any(self._is(s, self.meta["a_thing"]) for view in self.views for s in view) else "no"

    def _ever_word(self):
        return "yes" if any(s.text == self.meta["word"] for view in self.views for s in view) else "no"

    # future
    def _cycle(self, runs):
        previous = len(runs) - 2 - runs[-2::-1].index(runs[-1])
        return runs[previous + 1]

    def _next_colour(self):
        return self._cycle(self._runs([s.colour for view in self.views for s in view if s.sprite.shape == LAMP_ID]))

    def _next_word(self):
        return self._cycle(self._texts())

    def _next_side(self):
        places = [(s.x, s.y) for _, s in self._trace() if s]
        dx, dy = places[-1][0] - places[0][0], places[-1][1] - places[0][1]
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("bottom" if dy > 0 else "top")
