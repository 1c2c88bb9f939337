"""What the documents say can be checked: their commands are commands, and their numbers stand in the kept results."""

import argparse
import importlib
import json
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from onlooker import cli
from onlooker.cli.app import app
from onlooker.evals import lines
from onlooker.evals.statistics import estimate

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    # The log tells what was run then; all others tell what can be run now.
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "log.md"),
    *sorted((ROOT / "recipes").glob("**/README.md")),
    *sorted((ROOT / "onlooker" / "models").glob("*/MODEL_CARD.md")),
]
TWINS = ROOT / "benchmarks" / "results" / "pocket_twins_h100_202611.jsonl"
SHARE = r"(?<!to )(0\.\d+|1\.0+)\**(?: \| | \()(0\.\d+|1\.0+) to (0\.\d+|1\.0+)"
WITH_RESULTS = [page for page in PAGES if page.name in ("results.md", "MODEL_CARD.md")]
sys.path.insert(0, str(ROOT))
from benchmarks import twins_table  # noqa: E402 - a command beside the package
from benchmarks.arms_table import compare  # noqa: E402 - a command beside the package
from recipes.pocket.export import NAMES  # noqa: E402 - the same


def told(page: Path) -> Iterator[str]:
    """Commands of ours on a page: lines of shell blocks, and what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(one.split()) for one in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    for line in lines:
        words = words_of(line.strip().removeprefix("$ "))
        is_module = words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks", "recipes"))
        is_ours = is_module or (words[:1] == ["onlooker"] and len(words) > 1)
        if is_ours and "..." not in line and "…" not in line and ", then" not in line:
            yield shlex.join(words)


def words_of(line: str) -> list[str]:
    """The words of the first program of a line; none where it goes on in another line."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    end = next((place for place, word in enumerate(words) if re.fullmatch(r"[|;&]+|\d?>+.*|<.*", word)), len(words))
    return words[:end]


for module in pkgutil.iter_modules(cli.__path__):
    importlib.import_module(f"onlooker.cli.{module.name}")  # commands register themselves
COMMANDS = sorted({line for page in PAGES for line in told(page)})
OURS = [line for line in COMMANDS if line.startswith("onlooker")]
MODULES = [line for line in COMMANDS if line.startswith("python")]


def test_the_pages_tell_of_commands() -> None:
    assert len(OURS) > 15 and len(MODULES) > 5


@pytest.mark.parametrize("line", OURS)
def test_a_command_that_is_told_of_is_understood(line: str) -> None:
    """As with `--help`, nothing is run: the words are only parsed."""
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    context = command.make_context("onlooker", [], resilient_parsing=True)
    if words[0] in {name for option in command.params for name in option.opts} | {"--help"}:
        return
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{line}: there is no such command"
        command = command.commands[words.pop(0)]
    is_whole = any("=" in word or word.startswith("-") for word in words) or len(words) > 1
    try:
        command.make_context(command.name, words, parent=context)
    except typer.Exit:
        pass
    except Exception as error:
        # A bare name of a command in a sentence ("`onlooker ask`") leaves out what it needs, and says nothing wrong.
        if is_whole or "Missing" not in str(error) + type(error).__name__:
            raise AssertionError(f"{line}: {error}") from error


class Parsed(Exception):
    """The words were understood."""


@pytest.mark.parametrize("line", MODULES)
def test_a_module_that_is_told_of_takes_these_words(line: str, monkeypatch) -> None:
    words = shlex.split(line)[2:]
    module = importlib.import_module(words[0])
    if hasattr(module, "__path__"):  # a package is run by its main module
        module = importlib.import_module(f"{words[0]}.__main__")
    if not hasattr(module, "argparse"):
        assert words[1:] == [], "it takes none"
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, words[1:])
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", words)
    if hasattr(module, "main"):
        with pytest.raises(Parsed):
            module.main()


# ------------------------------------------------------------------------------------------------------- numbers


def values(thing: Any) -> Iterator[tuple[float, float, float]]:
    """(value, low, high) of everything with an interval in a result."""
    if isinstance(thing, dict):
        if {"accuracy", "low", "high"} <= set(thing):
            yield thing["accuracy"], thing["low"], thing["high"]
        for part in thing.values():
            yield from values(part)
    elif isinstance(thing, list):
        if len(thing) == 3 and all(isinstance(part, int | float) for part in thing):
            yield thing[0], thing[1], thing[2]
        for part in thing:
            yield from values(part)


def results() -> list[Any]:
    """Every row that is kept."""
    rows: list[Any] = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json*")):
        text = path.read_text(encoding="utf-8")
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            rows += [json.loads(line) for line in text.splitlines()]  # one row on each line
    return rows


def derived() -> Iterator[tuple[float, float, float]]:
    """(value, low, high) of rows that keep every mark, as the command of their table makes them, and of runs' lines."""
    kept = [row for row in results() if isinstance(row, dict) and "marks" in row and row.get("arm") in NAMES]
    for line in compare(kept):
        yield line["right"], line["low"], line["high"]
    for path in (ROOT / "benchmarks" / "results").glob("*.jsonl"):
        if path.read_text(encoding="utf-8").startswith('{"type": "questions"'):
            about, runs = lines.read(path)
            for run in runs:
                if None not in run["worth"]:
                    found = estimate(run["worth"], about["videos"])
                    yield found.value, found.low, found.high


def of_twins() -> Iterator[tuple[float, ...]]:
    """(mean, low, high) that the table of twins prints of the rows that are kept."""
    rows = [json.loads(line) for line in TWINS.read_text(encoding="utf-8").splitlines()]
    for found in re.findall(SHARE, "\n".join([*twins_table.choices(rows, "L2"), *twins_table.gates(rows)])):
        yield tuple(map(float, found))


KEPT = {tuple(round(part, 4) for part in found) for row in results() for found in values(row)}
KEPT |= {*derived(), *of_twins()}


def has_row(value: str, low: str, high: str) -> bool:
    """Whether a kept row rounds to these numbers, as many digits as are shown."""
    return any(
        all(
            abs(kept - float(shown)) <= 0.51 * 10 ** -len(shown.partition(".")[2])
            for kept, shown in zip(row, (value, low, high), strict=True)
        )
        for row in KEPT
    )


@pytest.mark.parametrize("page", WITH_RESULTS, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_share_with_an_interval_has_a_row(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = re.findall(SHARE, text)
    assert shown or "95 % interval" not in text
    assert [" ".join(numbers) for numbers in shown if not has_row(*numbers)] == []


def numbers_of(thing: Any) -> Iterator[float]:
    if isinstance(thing, dict | list):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from numbers_of(part)
    elif isinstance(thing, int | float) and not isinstance(thing, bool):
        yield float(thing)


def test_the_numbers_that_the_readme_boasts_of_have_rows() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## What it brings")[1].split("\n## ")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    kept = {number for row in results() for number in numbers_of(row)}
    for shown in re.findall(r"(\d+(?:\.\d+)?) %", " ".join(cells)):
        digits = len(shown.partition(".")[2])
        assert any(abs(100 * number - float(shown)) <= 0.51 * 10**-digits for number in kept), f"{shown} %"
    for shown in re.findall(r"0\.\d+(?! %)", " ".join(cells)):
        assert any(abs(number - float(shown)) <= 0.0051 for number in kept), shown
