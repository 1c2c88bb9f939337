"""Writes the tables of docs/compressors.md from committed rows, and draws its picture.

python tools/compressors.py            # says whether the page is stale
python tools/compressors.py --write
python tools/compressors.py --draw     # six frames of each compressor (needs a minute)
"""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onlooker.evals import lines
from onlooker.evals.compressors import named
from onlooker.evals.statistics import detectable, holm, paired_gap

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE, RESULTS = ROOT / "docs/compressors.md", ROOT / "docs/compressors.png", ROOT / "benchmarks/results"
COST = RESULTS / "compressor_cost_h100_f_202611.jsonl"
PLAIN = ("uniform", "lower resolution", "fewer frames")
"""Controls that stand for themselves; the seeds of random are one."""
BESIDE = ("all tokens", "last 4 frames", "mean_pool", "carrier")
MARK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)
SHOWN = 0.25
RATE = "tokens_a_second"


@dataclass(frozen=True)
class Cell:
    """One method at one share."""

    worth: np.ndarray
    row: dict[str, Any]
    share: float
    """Of all tokens of the stream that were read."""

    @property
    def accuracy(self) -> float:
        return float(self.worth.mean())


class Grid:
    """The rows of one level."""

    def __init__(self, path: Path) -> None:
        self.about, rows = lines.read(path)
        everything = next(row for row in rows if row["name"] == "all tokens")
        self.cells: dict[tuple[str, float | None], Cell] = {}
        for row in rows:
            name, share = named(row["name"])
            if row["failed"]:
                raise SystemExit(f"{path.name}: {row['name']} failed on {row['failed']} questions: no score")
            cell = Cell(np.array(row["worth"], float), row, row["kept_a_second"] / everything["seen_a_second"])
            self.cells[name, share] = cell
        self.shares = sorted({share for _, share in self.cells if share is not None})
        for share in self.shares:
            seeds = [self.cells[name, share] for name, at in list(self.cells) if at == share and "seed" in name]
            if seeds:
                mean = np.mean([one.worth for one in seeds], axis=0)
                self.cells["random", share] = Cell(mean, seeds[0].row, seeds[0].share)
        names = dict.fromkeys(name for name, share in self.cells if share is not None and "seed" not in name)
        self.methods = sorted(name for name in names if name not in (*PLAIN, "random", "oracle"))
        self.against_random = self._verdicts(lambda share: ["random"])
        self.against_plain = self._verdicts(lambda share: ["random", *PLAIN])

    def gap(self, one: Cell, other: Cell) -> Any:
        """The paired difference over clips."""
        return paired_gap((one.worth - other.worth).tolist(), self.about["videos"])

    def _verdicts(self, rivals: Callable[[float], Sequence[str]]) -> dict[tuple[str, float], tuple[Any, float]]:
        """By method and share: the smallest gap to any rival, and its p, corrected over the table."""
        found: dict[tuple[str, float], Any] = {}
        for name in self.methods:
            for share in self.shares:
                if (cell := self.cells.get((name, share))) is None:
                    continue
                others = [self.cells[rival, share] for rival in rivals(share) if (rival, share) in self.cells]
                found[name, share] = min((self.gap(cell, other) for other in others), key=lambda gap: gap.gap)
        corrected = holm([gap.p for gap in found.values()])
        return {key: (gap, p) for (key, gap), p in zip(found.items(), corrected, strict=True)}

    def verdict(self, name: str, share: float) -> str:
        """Against tokens at random: "better", "worse" or "tie"."""
        gap, p = self.against_random[name, share]
        return "tie" if p > 0.05 else "better" if gap.gap > 0 else "worse"

    def beats_all(self, name: str, share: float) -> bool:
        """Whether it is better than every control that costs no thought."""
        gap, p = self.against_plain[name, share]
        return p <= 0.05 and gap.gap > 0

    # ------------------------------------------------------------------------------------------------------- tables

    def accuracy(self) -> str:
        """Accuracy by method and share."""
        head = ["", *(f"{share:.0%}" for share in self.shares)]
        body = []
        for name in ["oracle", *self.ranked(), "random", *PLAIN]:
            body.append([_name(name), *(self._cell(name, share) for share in self.shares)])
        questions, clips = len(self.about["ids"]), len(set(self.about["videos"]))
        found = {name: self.cells[name, None] for name in BESIDE if (name, None) in self.cells}
        beside = [f"{name} {one.accuracy:.1%} ({one.row[RATE]:.0f} a second)" for name, one in found.items()]
        spread = [gap.spread for gap, _ in self.against_random.values()]
        power = detectable(float(np.median(spread)), len(spread))
        row = next(iter(self.cells.values())).row
        commits = ", ".join(dict.fromkeys(cell.row["commit"] for cell in self.cells.values()))
        note = (
            f"{questions} questions on {clips} clips ({self.about['clips']}), {row['settings']['model']}; "
            f"beside them, by tokens read: {', '.join(beside)}. A true gap of {100 * power:.0f} points from random is "
            f"seen in four tables of five like this one. Commit {commits}, {row['versions']}, {row['card']}."
        )
        return f"{_table(head, body)}\n\n{note}\n"

    def ranked(self) -> list[str]:
        """Methods, best first, by their mean over the shares that most have, at `SHOWN` where that is there."""
        at = SHOWN if SHOWN in self.shares else self.shares[0]
        return sorted(
            self.methods, key=lambda name: -(self.cells[name, at].accuracy if (name, at) in self.cells else -1)
        )

    def _cell(self, name: str, share: float) -> str:
        if (cell := self.cells.get((name, share))) is None:
            return "-"
        text = f"{cell.accuracy:.1%}"
        if name in self.methods:
            text += {"better": " +", "worse": " -", "tie": ""}[self.verdict(name, share)]
            text = f"**{text}**" if self.beats_all(name, share) else text
        return text

    def words(self) -> str:
        """Who is better than tokens at random, who is not, and who is worse."""
        said = []
        for share in self.shares:
            groups: dict[str, list[str]] = {"better": [], "tie": [], "worse": []}
            for name in self.ranked():
                if (name, share) in self.against_random:
                    groups[self.verdict(name, share)].append(_name(name))
            beats = [
                _name(name) for name in self.ranked() if (name, share) in self.cells and self.beats_all(name, share)
            ]
            parts = [f"{word} {_listed(groups[key])}" for key, word in _WORDS if groups[key]]
            end = (
                f"Better than every plain control: {_listed(beats)}."
                if beats
                else "None is better than all plain controls."
            )
            said.append(f"- **{share:.0%}**: {'; '.join(parts)}. {end}")
        return "\n".join(said) + "\n"

    def standing(self) -> str:
        """Of each method, at which shares it is above all plain controls, above random, not to be told from it or below
        it, and at which it is below a plain control, and which that is (corrected over all methods and controls)."""
        pairs = [
            (name, share, rival)
            for name, share in self.against_random
            for rival in PLAIN
            if (rival, share) in self.cells
        ]
        gaps = [self.gap(self.cells[name, share], self.cells[rival, share]) for name, share, rival in pairs]
        below: dict[str, dict[str, list[float]]] = {}
        for (name, share, rival), gap, p in zip(pairs, gaps, holm([gap.p for gap in gaps]), strict=True):
            if p <= 0.05 and gap.gap < 0:
                below.setdefault(name, {}).setdefault(rival, []).append(share)
        body = []
        for name in self.ranked():
            groups: dict[str, list[float]] = {"all": [], "better": [], "tie": [], "worse": []}
            for share in self.shares:
                if (name, share) in self.against_random:
                    groups["all" if self.beats_all(name, share) else self.verdict(name, share)].append(share)
            under = "; ".join(f"{rival} at {_shares(some)}" for rival, some in below.get(name, {}).items()) or "-"
            body.append([_name(name), *(_shares(some) for some in groups.values()), under])
        head = ["", "above every plain control", "above random only", "tie with random", "below random"]
        return _table([*head, "below a plain control"], body) + "\n"

    def categories(self, share: float) -> str:
        """Accuracy by category at one share."""
        tasks = sorted(set(self.about["tasks"]))
        of = {task: np.array([one == task for one in self.about["tasks"]]) for task in tasks}
        every = [("all tokens", None), ("oracle", share), *((name, share) for name in self.ranked())]
        every += [(name, share) for name in ("random", *PLAIN)]
        rows = [
            [_name(key[0]), *(f"{self.cells[key].worth[of[task]].mean():.0%}" for task in tasks)]
            for key in every
            if key in self.cells
        ]
        return _table(["", *tasks], rows) + "\n"

    def spent(self) -> str:
        """What each took at one share: measured share, time on this processor, the most that a stream held."""
        rows = []
        for name in [*self.ranked(), "random", *PLAIN]:
            if (cell := self.cells.get((name, SHOWN))) is None:
                continue
            row, method = cell.row, cell.row["settings"].get("compressor", "")
            took = "-" if row["compress_ms"] is None else f"{row['compress_ms']:.2f}"
            measured = [f"{cell.share:.1%}", f"{row['tokens_a_second']:.1f}", took]
            rows.append([_name(name), f"`{method}`" if method else "-", *measured])
        return _table(["", "setting", "kept", "tokens read a second", "ms a frame (CPU)"], rows) + "\n"


_WORDS = (("better", "better than random:"), ("tie", "no telling from random:"), ("worse", "worse than random:"))


def cost() -> str:
    """What each compressor costs on a GPU."""
    found = json.loads(COST.read_text(encoding="utf-8").splitlines()[-1])
    rows = [
        [
            f"`{one['settings']}`",
            f"{one['ms_a_frame']:.3f}",
            f"{one['ms_least']:.3f}",
            f"{one['ms_unprepared']:.3f}",
            f"{one['kept']:.1%}",
            f"{one['lookahead'] + 1} frames" if one["lookahead"] > 1 else f"{one['state_bytes'] / 2**20:.1f}",
            str(one["lookahead"]),
        ]
        for one in sorted(found["rows"], key=lambda one: one["ms_a_frame"])
    ]
    about = (
        f"{found['streams']} streams at once, {found['tokens']} tokens of width {found['dim']}, {found['dtype']}, "
        f"{found['device']}; commit {found['commit']}."
    )
    head = ["", "ms a frame", "quickest round", "without graphs", "kept"]
    head += ["state of a stream (MiB)", "late by at most (frames)"]
    return f"{_table(head, rows)}\n\n{about}\n"


FORMS = ("per_layer", "shared", "patch", "codec", "random", "per_layer+codec", "per_layer+search", "patch+codec",
         "codec+codec", "codec+search")  # fmt: skip
"""Who chooses, and behind a + what moves the reference along."""


def codec(path: Path) -> str:
    """Errors, and answers where there are any, by who chooses."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    forms = [form for form in FORMS if any(row["selection"] == form for row in rows)]
    body = []
    for where in dict.fromkeys((row.get("clip") or f"Pocket World {row['level']}", row["interval"]) for row in rows):
        own = [r for r in rows if (r.get("clip") or f"Pocket World {r['level']}", r["interval"]) == where]
        found = {row["selection"]: row for row in own}
        silent = found["codec"]["fallbacks"] if "codec" in found else 0.0
        cells = [_codec_cell(found.get(form)) for form in forms]
        body.append([f"{where[0]}, N={where[1]}", *cells, f"{silent:.0%}"])
    row, commits = rows[0], dict.fromkeys(row["commit"] for row in rows)
    about = f"{row['model']}, a quarter of the tokens; commit {', '.join(commits)}, {row['versions']}."
    return f"{_table(['', *(_name(form) for form in forms), 'codec said nothing'], body)}\n\n{about}\n"


def forms(path: Path) -> str:
    """Errors, answers and the tower's time of each form, a row each, beside the dense tower's answers."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    dense = next((row for row in rows if row["selection"] == "full"), None)
    some = sorted({row["interval"] for row in rows if row is not dense})
    timed = all("ms" in row for row in rows if row is not dense)
    found = {(row["selection"], row["interval"]): row for row in rows}
    head = [""]
    for interval in some:
        head += [f"error, N={interval}", *(["right"] if dense else []), *(["ms"] if timed else [])]
    body = []
    for form in dict.fromkeys(row["selection"] for row in sorted(rows, key=lambda row: row["interval"])):
        if form == "full":
            continue
        cells = [f"`{form}`"]
        for interval in some:
            row = found.get((form, interval), {})
            cells += [f"{row['error']:.3f}" if row else "-"]
            cells += [f"{row['right']:.1%}" if "right" in row else "-"] if dense else []
            cells += [f"{row['ms']:.1f}" if row else "-"] if timed else []
        body.append([*cells, f"{found.get((form, some[0]), found.get((form, some[-1]), {})).get('fallbacks', 0):.0%}"])
    row = next(row for row in rows if row is not dense)
    about = f"{row['model']}, level {row['level']}, {row['clips']} clips encoded at {row['rate']} pictures a second"
    about += f"; dense {dense['right']:.1%}" if dense else ""
    about += f", {row['dense_ms']:.1f} ms a frame" if timed else ""
    return f"{_table([*head, 'codec said nothing'], body)}\n\n{about}; commit {row['commit']}, {row['versions']}.\n"


def answers(path: Path) -> str:
    """Answers of each form against the dense tower's to the same questions, by how often a frame is whole."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    dense = next(row for row in rows if row["selection"] == "full")
    found = {(row["selection"], row["interval"]): row for row in rows}
    some, body = sorted({row["interval"] for row in rows} - {0}), []
    for form in dict.fromkeys(row["selection"] for row in sorted(rows, key=lambda row: row["interval"])):
        if form != "full":
            each = [found.get((form, interval)) for interval in some]
            body.append([f"`{form}`", *(_against(row, dense) for row in each)])
    about = (
        f"{dense['model']}, level {dense['level']}, {dense['clips']} clips encoded at {dense['rate']} pictures a second"
    )
    about += f", {len(dense['worth'])} questions; dense {dense['right']:.1%}; {dense['card']}, commit {dense['commit']}"
    return f"{_table(['', *(f'right, N={interval}' for interval in some)], body)}\n\n{about}, {dense['versions']}.\n"


def causes(path: Path) -> str:
    """What each form loses against the dense tower, by world."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    found = {(row["form"], row["world"]): row for row in rows}
    worlds = [name for name in ("all", "still_ground", "things") if ("dense", name) in found]
    body = []
    for form in dict.fromkeys(row["form"] for row in rows):
        cells = [f"{found[form, name]['right']:.1%}" if form == "dense" else "" for name in worlds]
        if form != "dense":
            cells = [_against(found.get((form, name)), found["dense", name]) for name in worlds]
        body.append([f"`{form}`", *cells])
    row = rows[0]
    about = f"{row['model']}, {row['clips']} clips, {row['questions']} questions; {row['card']}, commit {row['commit']}"
    return f"{_table(['', *worlds], body)}\n\n{about}, {row['versions']}.\n"


def refiners(path: Path) -> str:
    """Right answers of each refiner, against all tokens and against tokens drawn at random, paired over clips."""
    about, *rows = (json.loads(text) for text in path.read_text(encoding="utf-8").splitlines())
    found = {row["name"]: np.array([value or 0.0 for value in row["worth"]]) for row in rows}
    videos = {name: number for number, name in enumerate(dict.fromkeys(about["videos"]))}
    clip = np.array([videos[name] for name in about["videos"]])
    drawn = np.random.default_rng(0).integers(len(videos), size=(4000, len(videos)))
    lots = [marks for name, marks in found.items() if name.startswith("random")]
    rivals = [found["all tokens"], *([np.mean(lots, axis=0)] if lots else [])]

    def gap(marks: np.ndarray, rival: np.ndarray) -> str:
        sums = np.bincount(clip, marks - rival, len(videos))[drawn].sum(1)
        low, high = np.quantile(sums / np.bincount(clip)[drawn].sum(1), (0.025, 0.975))
        return f"{100 * (marks - rival).mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

    body = [
        [_name(name), f"{marks.mean():.1%}", *(gap(marks, rival) for rival in rivals)]
        for name, marks in sorted(found.items(), key=lambda each: -each[1].mean())
    ]
    head = ["", "right", "points against all tokens", *(["against random"] if lots else [])]
    last = rows[-1]
    end = f"{len(clip)} questions on {len(videos)} clips ({about['clips']}), {last['settings']['model']}"
    return f"{_table(head, body)}\n\n{end}; {last['card']}, commit {last['commit']}, {last['versions']}.\n"


def _against(row: dict[str, Any] | None, dense: dict[str, Any]) -> str:
    """Right answers, and by how many points that is more than dense, with the interval over parts of a clip's size."""
    if row is None:
        return "-"
    apart = np.array(row["worth"]) - np.array(dense["worth"])
    clips = np.array_split(apart, row["clips"])
    drawn = np.random.default_rng(0).integers(len(clips), size=(4000, len(clips)))
    sums, sizes = np.array([one.sum() for one in clips]), np.array([len(one) for one in clips])
    low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), (0.025, 0.975))
    return f"{row['right']:.1%} ({100 * apart.mean():+.1f}, {100 * low:+.1f} to {100 * high:+.1f})"


def _codec_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    right = f", {row['right']:.1%}" if "right" in row else ""
    return f"{row['error']:.3f}{right}"


def blocks() -> dict[str, str]:
    """Every generated part of the page, by its name."""
    made = {"cost": cost()} if COST.is_file() else {}
    for name in ("footage", "world"):
        if (path := RESULTS / f"codec_cacher_{name}_2cores_202611.jsonl").is_file():
            made[f"codec_{name}"] = codec(path)
    for name, file in (("moved", "codec_cacher_world_b_202611.jsonl"), ("branches", "cacher_branches_202611.jsonl")):
        if (RESULTS / file).is_file():
            made[f"codec_{name}"] = forms(RESULTS / file)
    if (path := RESULTS / "codec_cacher_world_c_202611.jsonl").is_file():
        made["codec_answers"] = answers(path)
    if (path := RESULTS / "cacher_causes_202611.jsonl").is_file():
        made["causes"] = causes(path)
    if (path := RESULTS / "refiners_L2_202611.jsonl").is_file():
        made["refiners"] = refiners(path)
    for level in ("L2", "L0", "L2_200", "neutral_L2"):
        path = RESULTS / f"compressors_grid_{level}_202611.jsonl"
        if path.is_file():
            grid = Grid(path)
            made |= {f"accuracy_{level}": grid.accuracy(), f"words_{level}": grid.words()}
            made |= {f"standing_{level}": grid.standing()}
            made |= {f"categories_{level}": grid.categories(SHOWN), f"spent_{level}": grid.spent()}
    return made


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def _shares(shares: Sequence[float]) -> str:
    return f"{', '.join(f'{100 * share:g}' for share in shares)} %" if shares else "-"


def _name(name: str) -> str:
    return name.replace("_", "\\_")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def written(page: str) -> str:
    """The page with its parts made anew; a part without rows stays as it is."""
    made = blocks()
    return MARK.sub(lambda m: m[1] + made[m[2]] + m[3] if m[2] in made else m[0], page)


# ------------------------------------------------------------------------------------------------------------ picture

SIDE, LABEL, FRAMES = 84, 110, 6
DARK, TINT = 0.16, (70, 130, 255)


def draw() -> None:
    """The same six frames for every method: what is kept is clear, what stands for several is blue, the rest dark."""
    from PIL import Image, ImageDraw

    from onlooker import models
    from onlooker.evals.budgets import knobs, settings, tokens_of
    from onlooker.evals.suites import items

    model, item = models.load("pocket-naive"), next(iter(items("pocketworld", 1, 12, "L2")))
    frames = list(item.open(1.0))
    (clip,) = tokens_of(model, [item], 1.0)
    found = [one for knob in knobs() for one in settings(knob, [SHOWN], model, [clip])]
    shown = [one for one in found if one.fits]
    first = 10
    sheet = Image.new("RGB", (LABEL + FRAMES * (SIDE + 4), len(shown) * (SIDE + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, one in enumerate(shown):
        top = place * (SIDE + 4)
        pen.text((6, top + SIDE // 2 - 12), f"{one.name}\n{one.measured:.0%}", fill="black")
        weights = _weights(one.text, clip)
        for n in range(FRAMES):
            picture = _overlaid(frames[first + n].image, weights[first + n])
            sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE), 1), (LABEL + n * (SIDE + 4), top))
    sheet.quantize(48).save(PICTURE, optimize=True)


def _weights(text: str, clip: Sequence[Any]) -> list[np.ndarray]:
    """For each frame the weight of each place of the grid: 0 where nothing was kept."""
    from onlooker.core import registry

    method, outs = registry.make("compressor", text), []
    state = method.new_state()
    for tokens in clip:
        outs.append(method.compress(tokens, state))
    outs += [rest for rest in [method.flush(state)] if rest is not None]
    found = [np.zeros(clip[0].grid) for _ in clip]
    for out in outs:
        for frame, row, col, weight in zip(
            *(x.tolist() for x in (out.frame, out.row, out.col, out.weight)), strict=True
        ):
            found[frame][row, col] = weight
    return found


def _overlaid(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    scale = np.kron(weight, np.ones([math.ceil(a / b) for a, b in zip(image.shape, weight.shape, strict=False)]))
    scale = scale[: image.shape[0], : image.shape[1], None]
    tinted = 0.65 * image + 0.35 * np.array(TINT)
    return np.where(scale == 0, DARK * image + 30, np.where(scale > 1.01, tinted, image)).astype(np.uint8)


def main() -> None:
    """See above."""
    if "--draw" in sys.argv:
        draw()
        return
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if "--write" in sys.argv:
        PAGE.write_text(after, encoding="utf-8")
    elif after != before:
        sys.exit("docs/compressors.md is stale: python tools/compressors.py --write")


if __name__ == "__main__":
    main()
