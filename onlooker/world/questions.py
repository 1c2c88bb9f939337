"""Turn candidates into records: balanced answers, few wordings, exact evidence."""

import random
from collections.abc import Callable, Iterable

from onlooker.core.errors import InputError
from onlooker.core.records import AnswerType, QueryRecord
from onlooker.world import ask_future, ask_level, ask_now, ask_past, balance
from onlooker.world.lexicon import LEVEL_TASKS, TASKS, TEMPLATES, WORDS
from onlooker.world.moment import Candidate, Facts
from onlooker.world.scene import Scene

CLOCK_TOLERANCE_S = 1.5
"""A clock answer this many seconds off is still right."""
_ASKERS: dict[str, Callable[[Facts], Iterable[Candidate]]] = {
    "present": ask_now.present, "attribute": ask_now.attribute, "reading": ask_now.reading,
    "counting": ask_now.counting, "spatial": ask_now.spatial, "before": ask_past.before, "when": ask_past.when,
    "order": ask_past.order, "repetition": ask_past.repetition, "ever": ask_past.ever, "next": ask_future.next_,
    "proactive": ask_future.proactive,
}  # fmt: skip
# Common answers are thinned: an answer is used only if its weight is above the luck of the draw (uniform in 0..1, and
# the same for all times that `questions` tries, or else many tries would wear the thinning away).
_THIN: dict[str, dict[str, float]] = {
    "count_all": {"0": 0.85, "1": 0.42, "2": 0.5, "3": 0.75},
    "count_shape": {"0": 0.33, "1": 0.33, "2": 0.8},
    "count_colour": {"0": 0.4, "1": 0.33, "2": 0.9},
    "blinks": {"0": 0.24, "1": 0.5, "2": 0.8},
    "changes": {"0": 0.25, "1": 0.5, "2": 0.7},
    "pattern_now": {"plain": 0.45},
    "size_now": {"small": 0.65, "medium": 0.7},
    "across": {"middle": 0.85},
    "updown": {"middle": 0.85},
    "ever_thing": {"yes": 0.96},
    "tell_word": {"no": 0.85},
}
# How often a form of a task is tried, against 1 for the others.
_SHARE = {
    "first_of_two": 0.5, "size_now": 0.6, "pattern_now": 0.9, "shape_only": 0.7, "shape_by_colour": 0.4,
    "shape_by_place": 1.5, "count_colour": 0.7, "beside": 3.0, "next_side": 0.4, "when_changed": 2.0,
}  # fmt: skip
_TRIES = 14


def ask(
    episode: Scene, task: str, ask_time_s: float, rng: random.Random, *, offset_s: float = 0.0,
    luck: float | None = None, age: int | None = None,
) -> QueryRecord | None:  # fmt: skip
    """See `Scene.ask`; with `age`, only questions whose evidence lies in that bucket of `ask_level.AGES_S`."""
    luck = rng.random() if luck is None else luck
    askers = _ASKERS if episode.level == "L0" else ask_level.ASKERS
    if task not in askers:
        raise InputError("unknown task", given=repr(task), do=f"use one of {', '.join(askers)}")
    if not 0 <= ask_time_s <= episode.duration_s:
        given = f"{ask_time_s} of {episode.duration_s} s"
        raise InputError("the time lies outside the episode", given=given, do="ask between 0 and duration_s")
    ask_time_s = round(float(ask_time_s), 3)
    if ask_time_s < 1.0:
        return None
    candidates = askers[task](Facts(episode, ask_time_s))
    if episode.level == "L0":
        chosen = _pick(candidates, rng, luck, lambda form, answer: _THIN.get(form, {}).get(answer, 1.0))
    else:
        if age is not None:
            candidates = [c for c in candidates if ask_level.age_bucket(_age(c, ask_time_s)) == age]
        chosen = _pick(
            candidates, rng, luck, lambda form, answer: balance.weight(episode.level, form, answer, ask_time_s)
        )
    return _record(episode, task, ask_time_s, chosen, rng, offset_s) if chosen else None


def _age(found: Candidate, time_s: float) -> float:
    """Seconds since the oldest thing that proves the answer was to be seen."""
    return max(0.0, time_s - found.evidence[0][1]) if found.evidence else 0.0


def questions(
    episode: Scene, num: int, rng_seed: int, *, tasks: tuple[str, ...] | None, between_s: tuple[float, float] | None,
    offset_s: float,
) -> list[QueryRecord]:  # fmt: skip
    """See `Scene.questions`."""
    ladder = _aged if episode.level != "L0" else None
    tasks = tuple(TASKS if ladder is None else LEVEL_TASKS) if tasks is None else tasks
    rng = random.Random(f"{episode.id}/{rng_seed}")
    low, high = between_s or (1.5, episode.duration_s - 0.01)
    low, high = max(1.0, low), min(high, episode.duration_s)
    if low > high:
        raise InputError("no time is left to ask in", given=f"{low}..{high} s", do="widen between_s")
    out: list[QueryRecord] = []
    queue: list[str] = []
    for _ in range(3 * num):
        if len(out) == num:
            break
        queue = queue or rng.sample(tasks, len(tasks))
        if ladder is not None and len(tasks) > 1 and queue[-1] == "glance" and rng.random() < 0.35:
            queue.pop()  # rarer tasks are not always found: what one frame tells must stay the smaller part
            continue
        task, luck = queue.pop(), rng.random()
        if ladder is not None:
            if record := ladder(episode, task, rng, (low, high), offset_s, luck):
                out.append(record)
            continue
        for _ in range(_TRIES):
            if record := ask(episode, task, _time(rng, episode, task, low, high), rng, offset_s=offset_s, luck=luck):
                out.append(record)
                break
    out.sort(key=lambda record: record.ask_time)
    return [_numbered(record, index) for index, record in enumerate(out)]


def _aged(
    episode: Scene, task: str, rng: random.Random, between_s: tuple[float, float], offset_s: float, luck: float
) -> QueryRecord | None:
    """A question of a level: its evidence is of an age drawn first, as far as the episode has one of that age."""
    ages: list[int | None] = [None]
    if task in ("before", "when", "order", "since", "place", "ever"):
        top = ask_level.age_bucket(between_s[1])
        ages = [*rng.sample(range(top + 1), top + 1), None]
    # Balanced counts and things that come in pairs are rare: they are looked for longer.
    tries = 80 if task in ("repetition", "identity", "next") else _TRIES
    for age in ages:
        for _ in range(tries):
            at = _time(rng, episode, "glance" if age is None else task, *between_s)
            if record := ask(episode, task, at, rng, offset_s=offset_s, luck=luck, age=age):
                return record
    return None


def _time(rng: random.Random, episode: Scene, task: str, low: float, high: float) -> float:
    """A little after a whole second, later rather than earlier for questions about the past."""
    part = rng.random()
    if task in ("before", "when", "order", "repetition", "ever"):
        part = part**0.6
    elif task == "proactive":
        part *= max(0.1, 1 - 8 / episode.duration_s)
    at = low + (high - low) * part
    return min(high, max(low, int(at) + rng.uniform(0.05, 0.5)))


def _numbered(record: QueryRecord, index: int) -> QueryRecord:
    object.__setattr__(record, "id", f"{record.video}-{index:03d}")  # made a moment ago and not shared yet
    object.__setattr__(record, "order", index)
    return record


def _pick(
    candidates: Iterable[Candidate], rng: random.Random, luck: float, weight: Callable[[str, str], float]
) -> Candidate | None:
    """A form by its share, then an answer by its weight, then any candidate that has it."""
    forms: dict[str, dict[str, list[Candidate]]] = {}
    for candidate in candidates:
        answer = candidate.answer or str(candidate.seconds)
        if weight(candidate.form, answer) > luck:
            forms.setdefault(candidate.form, {}).setdefault(answer, []).append(candidate)
    if not forms:
        return None
    form = rng.choices(list(forms), [_SHARE.get(name, 1.0) for name in forms])[0]
    answers = forms[form]
    return rng.choice(answers[rng.choices(list(answers), [weight(form, answer) for answer in answers])[0]])


def clock(seconds: float) -> str:
    """A stream time as "[mm:ss]" (minutes beyond 99 take three digits)."""
    whole = int(seconds)
    return f"[{whole // 60:02d}:{whole % 60:02d}]"


def _record(
    episode: Scene, task: str, time_s: float, found: Candidate, rng: random.Random, offset_s: float
) -> QueryRecord:
    kind: AnswerType = "mcq"
    answer, options, tolerance = found.answer, found.options, 0.0
    meta = {"sprites": list(found.sprites), "form": found.form, **found.words}
    if found.seconds is not None:
        kind, answer, tolerance = "text", clock(found.seconds + offset_s), CLOCK_TOLERANCE_S
        meta["seconds"] = found.seconds + offset_s
    elif task == "proactive":
        kind = "proactive"
    elif task == "ever":
        kind = "yesno"
    elif answer.isdigit():
        kind = "count" if options else "mcq"
    if not options and kind == "mcq":
        options = _texts(answer, rng)
    families = TASKS if episode.level == "L0" else LEVEL_TASKS
    if episode.level != "L0":
        meta |= {"level": episode.level, "age_s": round(_age(found, time_s), 3)}
    return QueryRecord(
        id=f"{episode.id}-{task}-{round(time_s * 1000)}", video=episode.id, benchmark="pocket_world", task=task,
        family=families[task][0], ask_time=time_s, question=rng.choice(TEMPLATES[found.form]).format(**found.words),
        answer=answer, answer_type=kind, options=options, evidence=found.evidence, windows=found.windows,
        tolerance=tolerance, test_points=tuple({"t": at, "expect": expect} for at, expect in found.test_points),
        meta=meta,
    )  # fmt: skip


def _texts(answer: str, rng: random.Random) -> tuple[str, ...]:
    """Options for what a sign reads: all words, or the number among seven that are near it in writing."""
    if not answer.isdigit():
        return WORDS
    near = [f"{a}{answer[1]}" for a in "123456789"] + [f"{answer[0]}{b}" for b in "0123456789"]
    others = rng.sample(sorted(set(near) - {answer}), 7)
    return tuple(sorted((*others, answer)))
