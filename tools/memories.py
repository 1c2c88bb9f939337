"""Writes the page about memories from the rows of `benchmarks.half_hour` and `benchmarks.recency_bias`."""

import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onlooker.evals.statistics import estimate, holm, paired_gap

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "memories.md", ROOT / "benchmarks" / "results"
AGES = (
    ("now", 0.0, 0.5),
    ("1 to 10 min", 60.0, 600.0),
    ("10 to 25 min", 600.0, 1500.0),
    ("25 min and more", 1500.0, 1e9),
)
"""Of what is asked about, in seconds before the question."""
LONG_AGES = (*AGES[:-1], ("25 to 100 min", 1500.0, 6000.0), ("100 min and more", 6000.0, 1e9))
"""The same in streams of two hours."""
CONTROL, ORACLE = "last_frames:frames=48", "told where to look"
DEFAULT = "rekv:topk=43,first=1,recent=4,score=shares,window_tokens=1008"
CURVE_S = (0.5, 60.0, 240.0, 480.0, 720.0, 960.0, 1260.0, 1560.0, 1e9)
HEAD = """# Which memory?

Made by `python tools/memories.py --write` from the rows named below; `make check` fails when it is stale. What each
memory does, and its settings: [methods.md](methods.md). How to write one: [adding a method](adding_a_method.md).

## Choose

| you ask about | take | it holds |
|---|---|---|
| the last seconds only | `last_frames` | the tokens of a few frames |
| the last minutes | `sliding_window` (its prompt never leaves) | keys and values of the window |
| anything ever seen, and when | `retrieval_heads` | all frames, parked on the host (a quarter with `host=int4`) |
| the same, on a fixed number of bytes | `retrieval_heads:max_parked=480,thin=true` with `host=int4` | so many frames |
| anything ever seen, with a model whose heads nobody measured | `rekv` (the default) | all frames, parked |
| what was said, for hours | `video_rag`, `streaming_vlm` | texts beside the newest frames |
| a file, once, soon | `quickprefill`, `full` | a share of everything; everything |

The frames of a file are read sixteen in one pass (`Session.push_many`, in `onlooker ask` and `chapters`) as long as the
memory evicts nothing between them: always under `full`, group by group under `quickprefill`, under `rekv` and the other
windows until the window is full, from then on one by one. Memories that look at the keys or queries of each block
(`livevlm`, `participative`, `resv`) read one by one, and those that hold tokens read nothing before the question.

`retrieval_heads` asks heads by number. Its default is right for the pocket models; for another model find them first
(`python -m benchmarks.find_heads --model ...`). So it is not the default, which has to serve every model, though it
wins wherever it was measured. `recent=4` tells more clock times, `recent=8` more of the present.

The default is `rekv:topk=60,first=1,recent=8,score=shares`: eight recent frames, and sixty that the question finds. It
had four and sixty-four. At equal tokens and bytes eight tell more of the present, and are level about everything older:
planned on twelve streams that had chosen nothing, +30.4 points over questions about now (+5.6 to +60.0, p .031 by
itself; all of it in counts, .70 right instead of .28), -1.7 (-7.2 to +3.7) about 25 minutes ago and more. That is what
`select_recent` proposes (a whole present, a small past that is recalled), and on these streams it answers as that does
(on the twelve before, +31.8 and -0.9). The tables compare with the form of four frames.

Half an hour back, at equal tokens in view, `retrieval_heads` is 27 points ahead of that over all questions about 25
minutes ago and more (38 with `recent=4`), reading two fifths of the tokens or fewer, and tells as much of the present
as the last frames do. Seven of ten clock times from then are right to the distance of two frames, eight of ten when
told where to look. In streams of two hours it is ahead as well over all questions about 25 minutes ago and more; about
100 minutes ago and more alone eight streams do not show it, and one clock time of five is right (one of four when told
where to look).

With `pocket-neutral` the form of four frames itself tells what appeared half an hour ago (.99 on five streams, where
`pocket-naive` has .78), and no clock times: how much a search needs its heads chosen is a matter of the model.

What half an hour ago was is told apart by those that park and search only, and not by all of these: by mean keys
(`rekv` as published, `streamingtom`) nothing is found. Memories that keep few rows, or small frames, of everything
(`infinipot_v`, `flash_vstream`, `curvestream`, `deep_sink`, `carriers`, `participative`, `scene_tiling`,
`streamforest`, `video_streaming`) are tied with the last frames there; `livevlm` is a little ahead before correction.
`streamforest` tells more about what came 1 to 25 minutes ago than they do. In a harder world (`--world hard`: small
things, a moving camera) the search has .85 of what appeared half an hour ago right where the last frames have .49, and
fewer things of the present; on three streams, which no test can call a difference. Rows whose positions grow with the
stream (`infinipot_v` as published, `quickprefill`) lose the pocket models: `pack=true` mends that in `infinipot_v`,
not the loss of what was dropped.
"""


@dataclass(frozen=True)
class Answer:
    """One answer under one memory."""

    stream: str
    number: int
    task: str
    age_s: float
    worth: float
    tokens: int
    want: str


def read() -> tuple[dict[str, dict[str, list[Answer]]], dict[str, dict[str, list[dict]]], list[str]]:
    """Answers and rows by model and memory, and the files they are from."""
    answers: dict[str, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    rows: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    files = sorted(RESULTS.glob("memories_*hour*.jsonl"))
    for path in files:
        for row in kept(path):
            world = "" if row.get("world", "plain") == "plain" else f", {row['world']} world"
            equal = {"tokens": "", "bytes": ", equal bytes", "fresh": ", twelve other streams"}[row["table"]]
            where = ", on a CPU" if row["device"] == "cpu" else ""
            name = f"{row['model']}, {row['minutes']:g} minutes{world}{equal}{where}"
            rows[name][row["memory"]].append(row)
            stream = f"{row['split']}/{row['minutes']}/{row['stream']}"
            said = told(row)
            whens = [n for n, one in enumerate(said) if one["task"] == "when"]
            answers[name][row["memory"]] += [
                Answer(stream, n, one["task"], one["age_s"], worth(one, row), one["tokens"], one["want"])
                for n, one in enumerate(said)
                # Rows from before November 26 hold what never was twice, the second time behind the others.
                if not (one["want"] == "no" and not one["age_s"] and whens and n > whens[0])
            ]
    return answers, rows, [path.relative_to(ROOT).as_posix() for path in files]


ASKED = ("task", "age_s", "want")
"""What a stream's questions are: kept with the first row of a stream in a file."""


def kept(path: Path) -> list[dict]:
    """The rows of a kept file, whole."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    asked: dict[int, dict] = {}
    for row in rows:
        of_stream = asked.setdefault(row["stream"], {name: row["answers"].get(name) for name in ASKED})
        row["answers"] = {name: row["answers"].get(name, of_stream.get(name)) for name in (*of_stream, *row["answers"])}
    return rows


def told(row: dict) -> list[dict]:
    """The answers of a kept row, one by one."""
    columns = row["answers"]
    return [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]


def keep(files: Sequence[Path], into: Path) -> None:
    """Add rows of `benchmarks.half_hour` to a kept file, with their answers as columns, what was asked once a stream,
    and no bytes where there are none. Of two of a memory on a stream the newer stays."""
    rows = kept(into) if into.is_file() else []
    rows += [json.loads(text) for path in files for text in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if isinstance(row["answers"], list):
            row["answers"] = {name: [one[name] for one in row["answers"]] for name in row["answers"][0]}
        for name in {"bytes", "bytes_at_half"} & set(row):
            row[name] = {part: size for part, size in row[name].items() if size}
    newest, asked = {(row["memory"], row["stream"]): row for row in rows}, {}
    for row in newest.values():
        known = asked.setdefault(row["stream"], row["answers"])
        if known is not row["answers"] and all(known[name] == row["answers"][name] for name in ASKED):
            row["answers"] = {name: some for name, some in row["answers"].items() if name not in ASKED}
    into.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in newest.values()))


def worth(one: dict, row: dict) -> float:
    """What an answer is worth. A clock time is right to the distance of the frames that were seen."""
    if one["task"] != "when":
        return one["worth"]
    told = [re.search(r"(\d+):(\d+)", one[name]) for name in ("want", "said")]
    seconds = [60 * int(found[1]) + int(found[2]) for found in told if found]
    return float(len(seconds) == 2 and abs(seconds[0] - seconds[1]) <= max(1.0, 1 / row.get("fps", 1.0)))


def cell(some: Sequence[Answer]) -> str:
    """Mean and interval over streams; nothing where nothing was asked."""
    if not some:
        return "-"
    wants = ["no" if one.want == "no" else one.task for one in some]
    found = estimate([one.worth for one in some], [one.stream for one in some], wants)
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def gap(ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[float, float, float, float]:
    """Mean difference over the questions put to both, its interval, and its p."""
    known = {(one.stream, one.number): one.worth for one in theirs}
    both = [
        (one.worth - known[one.stream, one.number], one.stream) for one in ours if (one.stream, one.number) in known
    ]
    found = paired_gap([worth for worth, _ in both], [stream for _, stream in both])
    return found.gap, found.low, found.high, found.p


def of_age(some: Sequence[Answer], low: float, high: float, task: str = "") -> list[Answer]:
    """Those about things of an age; with *ever* also those about what never was, which has none; low 0: about now."""
    if not low:
        return [one for one in some if one.task not in ("ever", "when")]
    never = [one for one in some if one.want == "no" and one.task == "ever" and task != "when"]
    there = [one for one in some if low <= one.age_s < high and one.want != "no" and task in ("", one.task)]
    return there + never if there else []


def even(some: Sequence[Answer]) -> list[Answer]:
    """As many about what never was as about whether something was, of each stream the first ones."""
    room = Counter(one.stream for one in some if one.want != "no" and one.task == "ever")
    kept = []
    for one in some:
        if one.want == "no":
            room[one.stream] -= 1
        if one.want != "no" or room[one.stream] >= 0:
            kept.append(one)
    return kept


def held(rows: Sequence[dict]) -> tuple[float, float]:
    """Mean bytes on the device and on the host at the end of a stream."""
    views = ("device_views", "host_rows")
    device = [sum(size for name, size in row["bytes"].items() if name not in views) for row in rows]
    return float(np.mean(device)), float(np.mean([row["bytes"].get("host_rows", 0) for row in rows]))


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def section(name: str, answers: dict[str, list[Answer]], rows: dict[str, list[dict]]) -> list[str]:
    """A model's table, and who is ahead of the search and of the last frames half an hour back."""
    streams = max(map(num_streams, answers.values()))
    devices = sorted({row["device"] for some in rows.values() for row in some})
    told = next(iter(rows.values()))[0]
    ages = LONG_AGES if told["minutes"] >= 120 else AGES
    late = ages[-1]
    out = [
        f"## `{name.partition(',')[0]}`, streams of {name.partition(', ')[2]}\n",
        f"{streams} streams ({', '.join(devices)}), encoder `{told['encoder']}`, compressor `{told['compressor']}`, "
        f"{told.get('fps', 1.0):g} frames a second. Mean and 95 % interval over streams. *ever*: did it ever appear? "
        "Half of it is about what did, that long ago, half about what never did: a constant answer gets half. *when*: "
        "the time of its coming or going, right to the distance of two frames. Tokens: of the stream, read by an "
        "answer. Bytes: held at its end. Differences below are over the streams that both memories saw.\n",
        "| memory | "
        + " | ".join(f"ever, {age}" if age != "now" else "now" for age, *_ in ages)
        + f" | when, {late[0]} | tokens | device | host | streams |",
        "|---|" + "---|" * (len(ages) + 5),
    ]
    order = sorted(answers, key=lambda memory: -_mean(of_age(answers[memory], *late[1:], "ever")))
    for memory in order:
        some = answers[memory]
        parts = [cell(of_age(some, low, high, "" if age == "now" else "ever")) for age, low, high in ages]
        parts.append(cell(of_age(some, *late[1:], "when")))
        device, host = held(rows[memory])
        tokens = round(float(np.mean([one.tokens for one in some])))
        shown = memory if memory == ORACLE else f"`{memory}`"
        sizes = ["", ""] if memory == ORACLE else [size(device), size(host)]
        out.append(" | ".join([f"| {shown}", *parts, str(tokens), *sizes, str(num_streams(some))]) + " |")
    lates = (AGES[-1], late) if late != AGES[-1] else (late,)
    compare = itertools.chain.from_iterable(compared(answers, one) for one in (ages[0], *lates))
    return [*out, "", *compare]


def compared(answers: dict[str, list[Answer]], late: tuple[str, float, float]) -> list[str]:
    """Every memory against the search and the last frames, over all questions of an age; about now against the search
    only."""
    others = [memory for memory in answers if memory not in (ORACLE, DEFAULT)]
    out = []
    for base, words in ((DEFAULT, "the default with four recent frames"), (CONTROL, "the last frames")):
        if base not in answers or (base == CONTROL and not late[1]):
            continue
        old = {memory: even(of_age(some, *late[1:])) for memory, some in answers.items()}
        names = [memory for memory in others if memory != base and old[memory] and old[base]]
        found = {name: gap(old[name], old[base]) for name in names}
        corrected = dict(zip(found, holm([one[3] for one in found.values()]), strict=True))
        ahead, behind, level = [], [], []
        for memory, (value, low, high, _) in sorted(found.items(), key=lambda one: -one[1][0]):
            told = f"`{memory}` {100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}; {corrected[memory]:.3f})"
            (level if corrected[memory] > 0.05 else ahead if value > 0 else behind).append(told)
        out.append(
            f"Against {words} (`{base}`), all questions about {late[0].replace(' and', ' ago and')}, points with 95 % "
            "intervals and p (sign-flip test over streams, Holm's correction):\n"
        )
        for title, some in (("ahead", ahead), ("no difference shown", level), ("behind", behind)):
            out.append(f"- {title}: {'; '.join(some) if some else 'none'}")
        out.append("")
    most = max(map(num_streams, answers.values()))
    few = sorted({count for count in map(num_streams, answers.values()) if count < 6})
    if few and late[1]:
        which = "With" if few == [most] else "Of memories with"
        told = " or ".join(map(str, few))
        out += [f"{which} {told} streams no such test can reach 5 %: what is level there was not told apart.", ""]
    return out


def num_streams(some: Sequence[Answer]) -> int:
    """How many streams the answers are about."""
    return len({one.stream for one in some})


def _mean(some: Sequence[Answer]) -> float:
    """As in `cell`: what was and what never was weigh the same."""
    parts = [[one.worth for one in some if (one.want == "no") == never] for never in (True, False)]
    return float(np.mean([np.mean(part) for part in parts if part])) if some else -1.0


def bias() -> tuple[list[dict], list[str]]:
    """Rows of the recency bias, and their files."""
    files = sorted(RESULTS.glob("memories_recency*.json*"))
    rows = [
        row
        for path in files
        for text in path.read_text(encoding="utf-8").splitlines()
        if text.startswith("{")
        for row in json.loads(text)["rows"]
    ]
    return rows, [path.relative_to(ROOT).as_posix() for path in files]


def page() -> str:
    """The whole page."""
    answers, rows, files = read()
    parts = [HEAD]
    if files:
        parts.append("Rows: " + ", ".join(f"[{Path(one).name}](../{one})" for one in files) + ".\n")
    for name in sorted(answers):
        parts += section(name, answers[name], rows[name])
        parts.append(f"![Accuracy over the age of what is asked about]({picture_of(name)})\n")
    found, sources = bias()
    if found:
        parts += [
            "## Does recall drift to late frames?\n",
            "Shares of recalled blocks by tenth of the stream, oldest first (`python -m benchmarks.recency_bias`); "
            "`evidence` is where what was asked about lies. MemStream (arXiv 2602.18434) finds that likeness to a "
            "question rises along a stream; `level=true` takes that trend out. Of `resv`, which scores clusters of "
            "rows and no blocks, the share of each block's rows counts that heads see; of `video_streaming` the parked "
            "blocks.\n",
            "| memory | " + " | ".join(f"{n + 1}" for n in range(10)) + " | late half |",
            "|---|" + "---|" * 11,
        ]
        for row in found:
            late = sum(row["tenths"][5:])
            shares = " | ".join(f"{share:.2f}" for share in row["tenths"])
            parts.append(f"| `{row['memory']}` | {shares} | {late:.2f} |")
        parts += ["", "![Where recalled blocks lie](memories_recency.png)\n"]
        parts.append("Rows: " + ", ".join(f"[{Path(one).name}](../{one})" for one in sources) + ".\n")
    return "\n".join(parts)


def picture_of(name: str) -> str:
    """The file of a model's picture."""
    return f"memories_{name.lower().replace(', ', '_').replace(' ', '_').replace('-', '_')}.png"


def curve(some: Sequence[Answer]) -> list[tuple[float, float]]:
    """Age in minutes and accuracy of *ever*, where enough was asked."""
    points = []
    for low, high in itertools.pairwise(CURVE_S):
        asked = of_age(some, low, high, "ever")
        there = [one.age_s for one in asked if one.want != "no"]
        if len(there) >= 6:
            points.append((float(np.mean(there)) / 60, _mean(asked)))
    return points


def draw() -> None:
    """The pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    answers, _, _ = read()
    for name, of_memory in answers.items():
        figure, axes = pyplot.subplots(figsize=(9, 5.5))
        lines = {memory: curve(some) for memory, some in sorted(of_memory.items())}
        styles = {memory: ("-", "--", ":", "-.")[number // 10 % 4] for number, memory in enumerate(lines)}
        colours = {memory: f"C{number % 10}" for number, memory in enumerate(lines)}
        for memory in sorted(
            lines, key=lambda one: -lines[one][-1][1] if lines[one] else 0.0
        ):  # as they lie at the end
            if lines[memory]:
                ages, found = zip(*lines[memory], strict=True)
                axes.plot(ages, found, styles[memory], color=colours[memory], marker=".", label=memory)
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set(
            xlabel="age of what is asked about, minutes", ylabel="accuracy of *ever*", ylim=(0.3, 1.02), title=name
        )
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=5)
        figure.savefig(PAGE.parent / picture_of(name), dpi=110, bbox_inches="tight", metadata={"Software": None})
        pyplot.close(figure)
    rows, _ = bias()
    if rows:
        figure, axes = pyplot.subplots(figsize=(8, 4.5))
        for row in rows:
            axes.plot(range(1, 11), row["tenths"], "k--" if row["memory"] == "evidence" else "-", label=row["memory"])
        axes.set(xlabel="tenth of the stream", ylabel="share of recalled blocks")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(PAGE.parent / "memories_recency.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    """`--write` brings the page and its pictures up to date; `--keep INTO FILE...` adds rows to a file of its;
    otherwise fail when the page is stale."""
    if "--keep" in sys.argv:
        into, *files = map(Path, sys.argv[sys.argv.index("--keep") + 1 :])
        keep(files, into)
        return
    text = page()
    if "--write" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            draw()
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/memories.md is stale: python tools/memories.py --write")


if __name__ == "__main__":
    main()
