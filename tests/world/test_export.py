"""Video files and record lines hold what the script says."""

import av
import numpy as np
import pytest

from onlooker.core.errors import InputError
from onlooker.core.records import from_json
from onlooker.world import make_episode, video_record, write_records, write_video


def test_a_written_video_shows_the_frames_at_their_times(tmp_path):
    episode = make_episode(2, "test", 6.0)
    path = tmp_path / "clip.mp4"
    record = write_video(episode, path, fps=4.0, size=(128, 160))
    frames = list(episode.frames(4.0, (128, 160)))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        decoded = [(picture.time, picture.to_ndarray(format="rgb24")) for picture in container.decode(video=0)]
    assert len(decoded) == len(frames) == 24
    for (time_s, image), frame in zip(decoded, frames, strict=True):
        assert time_s == pytest.approx(frame.time_s, abs=1e-3)
        error = np.mean((image.astype(np.float32) - frame.image) ** 2)
        assert 10 * np.log10(255**2 / error) > 26
    assert (record.duration, record.fps, record.path) == (6.0, 4.0, str(path))


def test_records_are_one_line_each(tmp_path):
    episode = make_episode(2, "test")
    rows = [video_record(episode), *episode.questions(5, 0)]
    assert write_records(tmp_path / "rows.jsonl", rows) == 6
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [from_json(line).id for line in lines] == [row.id for row in rows]


def test_odd_sizes_and_rates_are_refused(tmp_path):
    episode = make_episode(2, "test", 6.0)
    with pytest.raises(InputError, match="even"):
        write_video(episode, tmp_path / "clip.mp4", size=(127, 128))
    with pytest.raises(InputError, match="per second"):
        next(episode.frames(0.0))
    with pytest.raises(InputError, match="16 rows"):
        next(episode.frames(1.0, (8, 8)))
