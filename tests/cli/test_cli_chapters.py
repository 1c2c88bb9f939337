"""onlooker chapters: lines, JSON, and files that players and sites read."""

import json

import av
import pytest

CLIP = ("chapters", "synthetic:2:24", "--device", "cpu", "--model", "pocket-naive", "--response", "clock:period_s=8")
ASK = ("--prompt", "which shape came last?", "--least", 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vtt", "txt"])
def test_chapters_are_lines_and_files(run, tmp_path, kind) -> None:
    file = tmp_path / f"chapters.{kind}"
    ran = run(*CLIP, *ASK, "--out", file)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert len(lines) == 3 and [line.split("]")[0] for line in lines] == ["[0:00", "[0:08", "[0:16"]
    if kind == "txt":
        assert file.read_text().splitlines() == [line[1:].replace("]", "") for line in lines]
        return
    with av.open(str(file)) as opened:
        stream = opened.streams[0]
        starts = [float(packet.pts * stream.time_base) for packet in opened.demux(stream) if packet.size]
    assert starts == [0.0, 8.0, 16.0]


def test_programs_get_lines_and_a_summary(run) -> None:
    ran = run(*CLIP, *ASK, "--json")
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["event"] for row in told] == ["chapter"] * 3 + ["end"] and told[0]["end_s"] == 8.0


def test_another_kind_of_file_is_refused(run, tmp_path) -> None:
    ran = run(*CLIP, "--out", tmp_path / "chapters.doc")
    assert ran.code == 2 and ".vtt" in ran.err
