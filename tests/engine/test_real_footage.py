"""The whole pipeline on real footage: the pocket model and a random checkpoint folder watch what cameras saw."""

from collections.abc import Callable
from pathlib import Path

import pytest
from footage import big_buck_bunny, bikes, fetched, pedestrians

from onlooker.engine import Engine
from onlooker.video import open_video

pytestmark = pytest.mark.footage


@pytest.mark.parametrize(("fetch", "seconds"), [(bikes, 10), (pedestrians, 30), (big_buck_bunny, 30)])
@pytest.mark.parametrize("checkpoint", ["pocket-aware", "random"])
def test_real_footage_is_watched_and_asked_about(
    fetch: Callable, seconds: int, checkpoint: str, tiny_folder: Path, pytestconfig: pytest.Config
) -> None:
    path = fetched(fetch, pytestconfig)
    engine = Engine.from_pretrained(
        str(tiny_folder) if checkpoint == "random" else checkpoint,
        encoder="stc_published:interval=4,recompute_ratio=0.25",
        compressor="stc_pruner:keep_ratio=0.3",
        memory="rekv:topk=8,recent=2,window_tokens=400",
        device="cpu",
    )
    with engine.open(trace=True) as session, open_video(path, fps=1.0, end_s=seconds) as video:
        for frame in video:
            session.push(frame)
        first = session.ask("how many shapes are visible now?", max_new_tokens=6)
        second = session.ask("how many shapes are visible now?", max_new_tokens=6)
        stats = session.stats()
        assert stats.frames == pytest.approx(seconds, abs=1)
        assert stats.tokens_kept < 0.35 * stats.tokens_seen
        assert 0 < stats.refreshed_frames <= stats.frames / 4 + 1
        assert first.text == second.text
        assert session.trace is not None
        assert 0 < session.trace.recomputed.mean() <= 1
