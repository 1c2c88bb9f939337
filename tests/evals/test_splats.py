"""Gaussians in the flat: what is sent is what is rendered from, and what goes on costs less than what begins."""

import numpy as np
import pytest
import torch

from benchmarks import splats


@pytest.fixture
def small(monkeypatch):
    """Two frames and a few steps."""
    monkeypatch.setattr(splats, "FRAMES", 2)
    monkeypatch.setattr(splats, "FIRST", 10)
    monkeypatch.setattr(splats, "AGAIN", 5)
    return splats.pictures(0)


def test_pictures_go_through_h264_nearly_as_they_were() -> None:
    rng = np.random.default_rng(0)
    planes = np.clip(rng.normal(128, 20, (3, 12, 32)), 0, 255).astype(np.uint8)
    sizes, decode = splats.h264(planes, crf=1)
    out = np.stack(list(decode()))
    assert len(sizes) == 3 and min(sizes) > 0 and out.shape == planes.shape
    assert np.abs(out.astype(int) - planes).mean() < 2.0


def test_a_fit_comes_nearer_and_only_what_may_changes(small) -> None:
    begun = splats.start(small[0])
    may = torch.zeros(len(begun), dtype=torch.bool)
    may[:5] = True
    fitted = splats.fit(begun, small[0], 10, may)
    assert splats.psnr(fitted, small[0]) > splats.psnr(begun, small[0])
    assert torch.equal(fitted[5:], begun[5:]) and not torch.equal(fitted[:5], begun[:5])


def test_what_goes_on_is_smaller_than_what_begins(small) -> None:
    whole, residuals, (coded, took) = splats.full(small), splats.gated(small), splats.video(small)
    for sent in (residuals, coded):
        assert len(sent.sizes) == len(sent.db) == 2 and sent.sizes[1] < whole.sizes[1]
    assert took > 0 and residuals.sizes[0] == whole.sizes[0]


def test_a_picture_that_stands_still_costs_next_to_nothing(small) -> None:
    sent = splats.gated(torch.stack([small[0], small[0]]))
    assert sent.sizes[1] < 20 and sent.db[1] == sent.db[0]
