"""The models that come with the package: there, small enough together, and honest about what they saw."""

from pathlib import Path

import pytest

from onlooker import models

ROOM = Path(models.__file__).parent
MOST_BYTES = 48_000_000


@pytest.mark.parametrize("name", models.BUILT_IN)
def test_each_has_its_files_and_a_card(name):
    folder = ROOM / models.BUILT_IN[name]
    assert (folder / "config.json").is_file()
    weights = {file.name for file in folder.glob("*.safetensors")}
    assert len(weights - {"heads.safetensors"}) == 1
    assert (folder / "MODEL_CARD.md").read_text(encoding="utf-8").startswith(f"# {name}\n")


def test_all_of_them_fit_into_the_package():
    files = [path for folder in models.BUILT_IN.values() for path in (ROOM / folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("name", ["pocket-naive", "pocket-neutral", "pocket-stc"])
def test_the_card_says_what_was_seen_in_training(name):
    text = (ROOM / models.BUILT_IN[name] / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "**Training mix.**" in text
    assert ("no dropping, no Cacher" in text) == (name == "pocket-naive")
