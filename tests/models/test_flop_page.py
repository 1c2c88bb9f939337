"""The page of FLOP counts is what its command prints, and its counts are those of the stock networks."""

from pathlib import Path

import pytest
import torch

from benchmarks.flop_table import page
from onlooker.models import SHAPES
from onlooker.models._qwen_random import empty_network
from onlooker.models._shapes import QwenShape

PAGE = Path(__file__).parents[2] / "docs" / "flops.md"


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.flop_table > docs/flops.md"


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if isinstance(shape, QwenShape)])
def test_parameters_are_those_of_the_stock_network(name):
    shape = SHAPES[name]
    network = empty_network(shape, torch.bfloat16)
    assert shape.parameters == pytest.approx(network.num_parameters(), rel=0.01)
