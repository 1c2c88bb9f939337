"""The load test, for half a minute."""

import pytest

from benchmarks.server_load import Load, is_sound, measure


@pytest.mark.slow
def test_a_dozen_clients_lose_nothing(tmp_path):
    found = measure(Load(clients=12, minutes=0.4, fps=1.0, ask_every_s=5.0), tmp_path / "log")
    # So short a run is mostly warm-up: growth is judged by the long one.
    assert is_sound(found, most_growth=0.5), found
    assert found["frames_taken"] > 12 and found["answers"] > 5
    assert found["frames_taken"] + found["frames_dropped"] + found["answers"] == found["statuses"]["200"], found
