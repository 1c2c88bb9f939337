"""One self-contained HTML page: tables, figures, failures, and how to repeat every number."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from onlooker.evals.compare import Row, compare
from onlooker.evals.replay import Outcome
from onlooker.evals.report import failures, figures, table
from onlooker.evals.runs import Run
from onlooker.evals.score import by_task, official
from onlooker.evals.timing import timing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; width: 100%; font-size: 13px; } th { text-align: left; background: #f4f4f4; }
td, th { padding: .35rem .6rem; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } img { max-width: 100%; }
.better { color: #0a6b2d; } .worse { color: #a3201b; } .tie, .note { color: #666; } code { font-size: 12px; }
figure { margin: 1rem 0; } figcaption { color: #555; font-size: 13px; }
"""
_EXPLAIN = """Accuracy is by the strict scorer over all questions that were put, each weighs the same, and one that
failed is wrong; over the answered ones alone it stands beside. Macro is the mean of the categories. Intervals take the
questions of a video as one. Coverage also counts rows of a benchmark that could not be put. Tokens are those that
really entered the language model, timestamps and re-reading included; the vision tower's arithmetic is counted per
second of video; held is the most that one stream held. A difference is paired, question by question, and tested by
flipping the signs of whole videos, corrected for the number of comparisons (Holm). Published is the number that papers
print, by the published scorer. Runs that look ahead, or were not checked for it, stand apart from the causal ones."""


def write_report(runs: Sequence[Run], folder: Path, num_pictures: int = 3, reference: Run | None = None) -> Path:
    """`report.html`, the figures as PNG, and `table.md`, in a folder that may exist; returns the page.

    The pictures of failures come from the run with the best accuracy among those that read tokens.
    """
    rows = compare(runs, reference)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table.markdown(rows, folder) + "\n", encoding="utf-8")
    drawn = figures.figures(rows)
    for title, png in drawn.items():
        (folder / f"{title.lower().replace(' ', '_')}.png").write_bytes(png)
    seen = [row for row in rows if row.tokens_per_second > 0 and not row.run.settings.control]
    best = max(seen, key=lambda row: row.score.accuracy, default=None)
    pictures = failures.draw(best.run, folder, num_pictures) if best and num_pictures else []
    page = folder / "report.html"
    page.write_text(_page(rows, folder, drawn, pictures, best), encoding="utf-8")
    return page


def _page(
    rows: Sequence[Row], folder: Path, drawn: dict[str, bytes], pictures: list[tuple[Outcome, Path]], best: Row | None
) -> str:
    suites = ", ".join(sorted({row.run.settings.suite for row in rows}))
    parts = [
        f"<h1>{html.escape(suites)}: {len(rows)} runs</h1>", f"<p class=note>{_EXPLAIN}</p>", "<h2>All runs</h2>",
        _queues(rows, folder), f"<p class=note>{html.escape(table.footnote(rows))}</p>",
        "<h2>By category</h2>", _categories(rows, folder), _proactive(rows, folder),
        *(f"<h2>{html.escape(title)}</h2>{_image(png, title)}" for title, png in drawn.items()),
    ]  # fmt: skip
    if pictures and best:
        parts.append(f"<h2>Failures of {html.escape(best.run.settings.label)}</h2>")
        parts += [_failure(outcome, path) for outcome, path in pictures]
    parts += ["<h2>How to repeat this</h2>", _provenance(rows, folder)]
    head = f"<meta charset=utf-8><title>Onlooker report: {html.escape(suites)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _queues(rows: Sequence[Row], folder: Path) -> str:
    """One table for each lane, so that nobody compares across."""
    out = []
    for lane in dict.fromkeys(row.run.lane for row in rows):
        members = [row for row in rows if row.run.lane == lane]
        body = []
        for row, texts in zip(members, table.cells(members), strict=True):
            verdict = row.against.verdict if row.against else ""
            link = f'<a href="{html.escape(table.link_to(row, folder))}">{html.escape(texts[0])}</a>'
            cells = "".join(f"<td class=n>{html.escape(text)}</td>" for text in texts[1 : table.AGAINST])
            told = f"<td class={verdict or 'note'}>{html.escape(texts[table.AGAINST])}</td>"
            body.append(f"<tr><td>{link}</td>{cells}{told}</tr>")
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.headers(rows)[:-1])
        out.append(f"<h3>Lane: {lane}</h3><table><tr>{heads}</tr>{''.join(body)}</table>")
    return "".join(out)


def _categories(rows: Sequence[Row], folder: Path) -> str:
    tasks = sorted({outcome.query.task for row in rows for outcome in row.run.outcomes})
    heads = "".join(f"<th>{html.escape(task)}</th>" for task in tasks)
    body = []
    for row in rows:
        scores = by_task(row.run.outcomes)
        cells = "".join(
            f'<td class=n title="{table.percent(s.low)} to {table.percent(s.high)}, {s.answered} of {s.asked}">'
            f"{table.percent(s.accuracy)}</td>" if (s := scores.get(task)) else "<td></td>"
            for task in tasks
        )  # fmt: skip
        link = f'<a href="{html.escape(table.link_to(row, folder))}">{html.escape(row.run.settings.label)}</a>'
        body.append(f"<tr><td>{link}</td>{cells}</tr>")
    published = [(row.run.settings.label, official(row.run.outcomes)) for row in rows]
    lines = [
        f"<p>{html.escape(label)}, published averages: "
        + ", ".join(f"{html.escape(name)} {table.percent(value)}" for name, value in found.items()) + "</p>"
        for label, found in published if found
    ]  # fmt: skip
    return f"<table><tr><th>run</th>{heads}</tr>{''.join(body)}</table>{''.join(lines)}"


def _proactive(rows: Sequence[Row], folder: Path) -> str:
    body = []
    for row in rows:
        found = timing(row.run.outcomes, {video["video"].id: video["video"] for video in row.run.videos})
        if found is None:
            continue
        delay = "-" if found.delay_s is None else f"{found.delay_s:.1f} s"
        alarms = "-" if found.alarms_per_quiet_hour is None else f"{found.alarms_per_quiet_hour:.0f}"
        numbers = (f"{found.f1:.2f}", f"{found.precision:.2f}", f"{found.recall:.2f}", delay, alarms)
        cells = "".join(f"<td class=n>{number}</td>" for number in numbers)
        link = f'<a href="{html.escape(table.link_to(row, folder))}">{html.escape(row.run.settings.label)}</a>'
        body.append(f"<tr><td>{link}</td>{cells}<td class=n>{60 * found.quiet_hours:.1f} min</td></tr>")
    if not body:
        return ""
    heads = "run", "F1", "precision", "recall", "mean delay", "false alarms per quiet hour", "quiet time"
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<h2>Speaking unasked</h2><table><tr>{head}</tr>{''.join(body)}</table>"


def _image(png: bytes, title: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'


def _failure(outcome: Outcome, path: Path) -> str:
    reply, query = outcome.reply, outcome.query
    said = reply.text if reply else ""
    words = (
        f"{query.id} ({query.task}) at {query.ask_time:.1f} s: {query.question} "
        f"Said: {said or 'nothing'}. True: {query.answer}."
    )
    if not path.is_file():
        return ""
    data = base64.b64encode(_smaller(path)).decode()
    figure = f'<figure><img alt="{html.escape(query.id)}" src="data:image/jpeg;base64,{data}"></figure>'
    return f"{figure}<p class=note>{html.escape(words)}</p>"


def _smaller(path: Path) -> bytes:
    """The picture as JPEG, at most as wide as the page: noise makes PNGs of frames ten times as large."""
    out = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((1400, 4000))
        picture.convert("RGB").save(out, format="JPEG", quality=82)
    return out.getvalue()


def _provenance(rows: Sequence[Row], folder: Path) -> str:
    out = []
    for row in rows:
        here, settings = row.run.environment, row.run.settings
        packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
        chosen = ", ".join(f"{key}={value}" for key, value in settings.as_dict().items() if value not in ("", None))
        link = f'<a href="{html.escape(table.link_to(row, folder))}">{html.escape(settings.label)}</a>'
        seconds = row.run.done["seconds"] if row.run.done else 0.0
        out.append(
            f"<li>{link}<br><code>{html.escape(here['command'])}</code><br><span class=note>{html.escape(chosen)}; "
            f"commit {here['commit']}, {html.escape(packages)}, {here['gpu'] or here['machine']}, {here['threads']} "
            f"threads, {seconds:.0f} s, started {here['started']}</span></li>"
        )
    return f"<ul>{''.join(out)}</ul>"
