"""The grid `compressors`: every compressor at the same measured shares of the tokens, beside what costs no thought.

Beside the compressors stand, at each share: tokens at random (three seeds), evenly spread ones, a coarser picture,
fewer whole frames, and the tokens that cover what the world truly shows (no method, but a bound). Without a share: all
tokens, one mean token a frame, and the last four frames uncompressed.
"""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError
from onlooker.evals.budgets import CLIPS, Knob, Setting, knobs, settings, tokens_of
from onlooker.evals.run_settings import RunSettings, check, from_dict, load_items, model_of
from onlooker.evals.workers import ending_at_once

SHARES = (0.25, 0.1, 0.5, 0.05, 0.15)
"""Of the tokens of a stream, in the order in which they are run: what is cut off is missing everywhere."""
SEALED = "sealed:compressor-budgets"
"""The clips on which settings are looked for: none that is asked about."""
NAME = "compressors"
"""What the grid is called."""
FILE = "budgets.json"
SIDE_BY_SIDE = 32
"""Videos in each step at least: nothing but time hangs on it. 200 questions are put on 27."""


def shares_of(spec: str) -> tuple[float, ...] | None:
    """The shares that a grid asks for: all of `SHARES` (`compressors`), or some in percent (`compressors:5,15`); None
    for another grid. Raises `InputError` for shares that are none."""
    name, colon, asked = spec.partition(":")
    if name != NAME:
        return None
    if not colon:
        return SHARES
    try:
        shares = tuple(round(float(word) / 100, 5) for word in asked.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise InputError("shares are percents of the tokens", given=spec, do=f"for example {NAME}:5,15, or {NAME}")
    return shares


def runs(
    values: dict[str, Any],
    out: Path,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    shares: tuple[float, ...] = (),
) -> list[RunSettings]:
    """The runs of the grid under the settings of the command line, at `shares` (`SHARES` when none are given); what was
    found for the budgets is kept in `out` and used again. `on_progress` is told how many settings of how many are
    found."""
    base, shares = from_dict(values), shares or SHARES
    found = _found(base, out, workers, on_progress, shares)
    rows = [*_without_share(), *(row for share in shares for row in _at(share, base, found))]
    shared = {"encoder": "full", "memory": "full", "parallel": max(base.parallel, SIDE_BY_SIDE)}
    made = [from_dict(values | shared | row) for row in rows]
    for one in made:
        check(one)
    return made


def misfits(out: Path) -> list[Setting]:
    """What could not be brought to a share, and is left out there."""
    return [one for one in _read(out / FILE) if not one.fits]


def label(name: str, share: float | None) -> str:
    """What tables call a run; `named` takes it apart again."""
    return name if share is None else f"{name} @ {share:g}"


def named(text: str) -> tuple[str, float | None]:
    """The name and the share of a run of this grid."""
    name, at, share = text.rpartition(" @ ")
    return (name, float(share)) if at else (text, None)


def _without_share() -> list[dict[str, Any]]:
    return [
        {"compressor": "identity", "name": "all tokens"},
        {"compressor": "mean_pool", "name": "mean_pool"},
        {"compressor": "identity", "memory": "last_frames:frames=4", "name": "last 4 frames"},
    ]


def _at(share: float, base: RunSettings, found: Sequence[Setting]) -> list[dict[str, Any]]:
    rows, cols = _grid_of(base)
    count = max(1, round(share * rows * cols))
    down, across = coarse(rows, cols, count)
    plain = [
        ("uniform", f"uniform:keep={count}"),
        *((f"random, seed {seed}", f"random:keep={count},seed={seed}") for seed in range(3)),
        ("lower resolution", f"lower_resolution:side={down},across={across}"),
        ("oracle", f"oracle:keep={count}"),
    ]
    made: list[dict[str, Any]] = [{"compressor": text, "name": label(name, share)} for name, text in plain]
    made.append({"compressor": "identity", "fps": round(base.fps * share, 5), "name": label("fewer frames", share)})
    methods = [one for one in found if one.share == share and one.fits]
    return made + [{"compressor": one.text, "name": label(one.name, share)} for one in methods]


def coarse(rows: int, cols: int, count: int) -> tuple[int, int]:
    """Rows and columns of the coarser grid with about so many tokens: the nearest number, then the squarest cells."""
    pairs = [(down, across) for down in range(1, rows + 1) for across in range(1, cols + 1)]
    return min(pairs, key=lambda pair: (abs(pair[0] * pair[1] - count), abs(pair[0] * cols - pair[1] * rows), pair))


# ---------------------------------------------------------------------------------------------------------- budgets


def _found(
    base: RunSettings, out: Path, workers: int, on_progress: Callable[[int, int], None], shares: tuple[float, ...]
) -> list[Setting]:
    path = out / FILE
    have = _read(path)
    known = {(one.name, one.share) for one in have}
    wanted = {knob: [share for share in shares if (knob.name, share) not in known] for knob in knobs()}
    asked = [(knob, missing) for knob, missing in wanted.items() if missing]
    if not asked:
        return have
    look, new, total = partial(_look, _clips_of(base)), [], sum(len(missing) for _, missing in asked)
    if workers <= 1:
        for knob, missing in asked:
            new += look(knob, missing)
            on_progress(len(new), total)
    else:
        context = multiprocessing.get_context("spawn")
        with ending_at_once(ProcessPoolExecutor(workers, context, initializer=_one_thread)) as pool:
            futures = [pool.submit(look, knob, missing) for knob, missing in asked]
            done = 0
            for future in as_completed(futures):
                done += len(future.result())
                on_progress(done, total)
            new = [one for future in futures for one in future.result()]
    # In the order in which shares are run: the file reads as the table does.
    new.sort(key=lambda one: shares.index(one.share))
    found = [*have, *new]
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found), encoding="utf-8")
    except OSError as error:
        raise InputError(
            "the budgets cannot be written", given=f"{path} ({error.strerror})", do="another --out"
        ) from error
    return found


def _look(base: RunSettings, knob: Knob, shares: Sequence[float]) -> list[Setting]:
    return settings(knob, shares, model_of(base), _clips(base))


def _grid_of(base: RunSettings) -> tuple[int, int]:
    one = replace(_clips_of(base), limit=1)
    item = load_items(one).items[0]
    (clip,) = tokens_of(model_of(one), [replace(item, open=lambda fps: islice(item.open(fps), 1))], one.fps)
    return clip[0].grid


def _clips_of(base: RunSettings) -> RunSettings:
    """Clips of the same kind that are not asked about; of a benchmark of files, its first videos."""
    return replace(base, limit=CLIPS * 8, seeds=SEALED, name="", control="")


@lru_cache(maxsize=1)
def _clips(base: RunSettings) -> Any:
    items = load_items(base).items[:CLIPS]
    return tokens_of(model_of(base), items, base.fps)


def _read(path: Path) -> list[Setting]:
    if not path.is_file():
        return []
    return [Setting(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
