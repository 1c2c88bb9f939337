"""The report is one page that needs nothing else, and every number links to its run."""

import re

import pytest
from scripted_items import many

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import runs
from onlooker.evals.compare import compare
from onlooker.evals.item import Reading
from onlooker.evals.replay import Outcome
from onlooker.evals.report.failures import wrong
from onlooker.evals.report.figures import AGES_S, age_class
from onlooker.evals.report.page import write_report
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.runs import execute
from onlooker.evals.score import published

pytest.importorskip("matplotlib")


@pytest.fixture
def three_runs(tmp_path, tiny_folder, monkeypatch):
    reading = Reading(tuple(many(4)))
    monkeypatch.setattr(runs, "load_items", lambda settings: reading)
    monkeypatch.setattr("onlooker.evals.report.failures.load_items", lambda settings: reading)
    model = {"model": str(tiny_folder), "device": "cpu", "encoder": "full", "memory": "full"}
    chosen = [
        RunSettings(limit=20, compressor="identity", name="all <tokens>", **model),
        RunSettings(limit=20, compressor="random:keep=2", name="random", **model),
        RunSettings(limit=20, control="oracle:0.1", name="oracle"),
    ]
    return [execute(settings, tmp_path / "runs" / str(n)) for n, settings in enumerate(chosen)]


def test_the_page_stands_alone(three_runs, tmp_path):
    page = write_report(three_runs, tmp_path / "report", num_pictures=1)
    text = page.read_text(encoding="utf-8")
    assert (
        "all &lt;tokens&gt;" in text and "<script" not in text and "http" not in re.sub(r'src="data:[^"]*"', "", text)
    )
    links = set(re.findall(r'href="([^"]*)"', text))
    assert links and all((tmp_path / "report" / link / "settings.json").is_file() for link in links)
    assert len(links) == 3 and "90.0%" in text
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert {"accuracy_against_tokens_kept.png", "accuracy_by_category.png", "latency_per_stage.png",
            "memory_over_time.png"} <= pictures  # fmt: skip
    assert text.count("data:image/png") >= 4 and text.count("data:image/jpeg") == 1 and "Failures of" in text
    told = (tmp_path / "report" / "table.md").read_text()
    assert "](../runs/0)" in told and "pocketworld, seeds from 0: 20 questions on 4 videos." in told
    assert "is seen in four tables of five" in told and told.count("p ") >= 2 and "100.0% to 100.0%" not in told


def test_a_table_corrects_its_tests_and_names_the_published_average(three_runs):
    rows = compare(three_runs)
    told_apart = [row.against for row in rows if row.against]
    assert len(told_apart) == 2 and all(one.corrected_p >= one.p for one in told_apart)
    assert all(row.published is None for row in rows)
    assert {row.run.settings.name: row.budget.vision_gflop_per_second > 0 for row in rows} == {
        "all <tokens>": True, "random": True, "oracle": False,
    }  # fmt: skip
    outcome = Outcome(
        QueryRecord(id="a", video="v", benchmark="videomme", task="short", family="offline", ask_time=1.0, question="?",
                    answer="red", options=("red", "blue"), meta={"lettered": True}),
        (ReplyRecord("a", 1.0, "A"),),
    )  # fmt: skip
    assert published([outcome]) == ("Overall", 1.0) and published([Outcome(outcome.query, (), "crashed")])[1] == 0.0


def test_failures_cover_the_categories_first(three_runs):
    chosen = wrong(three_runs[0], 2)
    assert {outcome.query.task for outcome in chosen} == {"task0", "task1"}


def test_age_of_evidence():
    import dataclasses

    outcome = many(1)[0]
    query = dataclasses.replace(outcome.queries[0], ask_time=9.0, evidence=((0.0, 1.0), (3.0, 5.5)))
    from onlooker.evals.replay import Outcome

    assert age_class(Outcome(query)) == "under 5 s" and age_class(Outcome(outcome.queries[0])) is None
    old = dataclasses.replace(query, ask_time=9.0 + AGES_S[-1])
    assert age_class(Outcome(old)) == "30 min and more"
