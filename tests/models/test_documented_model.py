"""The skeleton of docs/adding_a_model.md, taken out of the page, is a family: it watches, answers, saves, and packs."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from onlooker.core.frame import Frame
from onlooker.engine import Engine

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_model.md"
EXACT = {"encoder": "full", "compressor": "identity", "memory": "full"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    (text,) = re.findall(r"```python\n# my_family\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path_factory.mktemp("family") / "my_family.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("my_family", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_family"] = module
    spec.loader.exec_module(module)
    yield module.MyFamily()
    del sys.modules["my_family"]


def clip(seed: int) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [Frame(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), float(n)) for n in range(5)]


@pytest.mark.parametrize("settings", [EXACT, {}], ids=["exact", "defaults"])
def test_streams_together_are_as_apart_and_go_on_when_saved(model, settings) -> None:
    engine = Engine(model, **settings)
    together = [engine.open(), engine.open()]
    for step in zip(clip(0), clip(1), strict=True):
        engine.step(list(zip(together, step, strict=True)))
    alone = engine.open()
    for frame in clip(1):
        alone.push(frame)
    said = alone.ask("what is there?", max_new_tokens=6)
    assert together[1].ask("what is there?", max_new_tokens=6).text == said.text
    assert engine.load(alone.export()).ask("what is there?", max_new_tokens=6).text == said.text
    assert together[0].ask("what is there?", max_new_tokens=6).text != said.text, "it looks at the pictures"
    assert alone.stats().tokens_kept == 5 * (16 if settings else 4)


def test_packed_passes_give_the_same(model) -> None:
    answers = []
    for passes in ("plain", "packed"):
        session = Engine(model, **EXACT, passes=passes).open()
        for frame in clip(2):
            session.push(frame)
        answers.append(session.ask("what is there?", max_new_tokens=6).text)
    assert answers[0] == answers[1]
