"""The lmms-eval plug-in is sound as far as that shows without lmms-eval: it compiles, and its parts fit together."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "integrations" / "lmms_eval"
FILES = sorted(ROOT.rglob("*.py"))


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_compiles(path):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_the_entry_point_names_what_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["entry-points"]["lmms_eval.models"]["onlooker"].split(":")
    assert function in functions_of(ROOT / module / "__init__.py")
    text = (ROOT / module / "__init__.py").read_text()
    assert "onlooker_lmms.model.Onlooker" in text
    methods = functions_of(ROOT / module / "model.py")
    assert {"generate_until", "generate_until_multi_round", "loglikelihood"} <= methods


def test_the_task_file_binds_functions_that_are_there():
    folder = ROOT / "onlooker_lmms" / "tasks" / "streamingbench"
    text = (folder / "onlooker_streamingbench.yaml").read_text()
    bound = {line.split("!function scoring.")[1].strip() for line in text.splitlines() if "!function" in line}
    assert bound <= functions_of(folder / "scoring.py") and len(bound) == 4
    for key in ("task:", "dataset_path:", "test_split:", "output_type:", "metric_list:", "process_results:"):
        assert key in text


def test_the_task_scores_as_the_reader_does():
    path = ROOT / "onlooker_lmms" / "tasks" / "streamingbench" / "scoring.py"
    spec = importlib.util.spec_from_file_location("lmms_scoring", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    doc = {"id": "1", "video": "v.mp4", "task": "T", "query_time": 3.0, "prompt": "Q?", "answer": "B",
           "options": ["red", "blue", "green", "pink"]}  # fmt: skip
    assert module.process_results(doc, ["The answer is B"]) == {"strict": 1.0, "official": 0.0}
    assert module.process_results(doc, ["Blue or A"]) == {"strict": 0.0, "official": 1.0}
    assert module.doc_to_visual(doc) == ["v.mp4"] and module.mean([1.0, 0.0]) == 0.5
