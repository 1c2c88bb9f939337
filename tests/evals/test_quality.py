"""The head for the quality of pictures: what it reads, how it is fitted, and the numbers it is judged by."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onlooker import models
from onlooker.core.errors import ModelError
from onlooker.evals.quality import DAMAGES, FILE, PictureQuality
from recipes.pocket import quality

CPU = torch.device("cpu")


def test_pictures_have_one_damage_of_known_severity_or_none():
    (images, severities), *_ = list(quality.pictures("validation", 12, CPU))
    assert images.shape == (12, 128, 128, 3) and images.dtype == torch.uint8
    assert ((severities > 0).sum(1) <= 1).all() and set(severities.unique().tolist()) <= {0.0, *quality.SEVERITIES}
    again, _ = next(iter(quality.pictures("validation", 12, CPU)))
    assert torch.equal(images, again)


def test_ranks_and_areas_are_those_of_the_books():
    assert quality.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    assert quality.srcc(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0])) == pytest.approx(0.5)
    assert quality.auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)


def test_a_head_finds_what_its_numbers_tell():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(300, 20, generator=draw)
    truth = torch.stack([numbers[:, 0], numbers[:, 1] - numbers[:, 2], numbers[:, 3]], 1).sigmoid()
    head = quality.fit(numbers[:200], truth[:200])
    said = quality.apply(head, numbers[200:])
    assert all(quality.srcc(said[:, k].numpy(), truth[200:, k].numpy()) > 0.95 for k in range(3))
    assert head["weight"].shape == (len(DAMAGES), 20)


def test_refusal_takes_its_threshold_from_other_questions():
    chosen = {"right": np.ones(10), "tower": np.arange(10.0)}
    test = {"right": np.array([1.0, 1.0, 0.0, 0.0]), "tower": np.array([0.0, 7.0, 7.3, 9.0])}
    found = quality.refusal(chosen, test, "tower")
    assert found == {"right": 0.5, "answered_right": 1.0, "coverage": 0.5, "questions": 4}


def test_a_head_beside_a_checkpoint_rates_pictures_in_words(tmp_path):
    model = models.load("pocket-naive", device="cpu")
    with pytest.raises(ModelError, match="no head"):
        PictureQuality.of_folder(model, tmp_path)
    images, _ = next(iter(quality.pictures("validation", 3, CPU)))
    numbers = 2 * 192 * 7
    weights = {"mean": torch.zeros(numbers), "scale": torch.ones(numbers), "weight": torch.zeros(3, numbers),
               "bias": torch.tensor([0.1, 0.0, 0.7])}  # fmt: skip
    save_file(weights, tmp_path / FILE)
    rated = PictureQuality.of_folder(model, tmp_path).rate([image.numpy() for image in images])
    assert [(round(score, 3), word) for score, word in rated] == [(0.3, "poor")] * 3
    save_file(weights | {"weight": torch.zeros(2, numbers)}, tmp_path / FILE)
    with pytest.raises(ModelError, match="no head"):
        PictureQuality.of_folder(model, tmp_path)


@pytest.mark.slow
def test_the_whole_run_writes_rows_of_both_heads(tmp_path):
    folder = next(iter(models.__path__)) + "/pocket_naive"
    rows = tmp_path / "rows.jsonl"
    quality.main(["--model", folder, "--train", "60", "--test", "40", "--clips", "2", "--rows", str(rows),
                  "--out", str(tmp_path / FILE)])  # fmt: skip
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {line.get("head") or line.get("refusal") for line in lines} == {"tower", "free", None}
    assert (tmp_path / FILE).stat().st_size < 100_000
