"""onlooker narrate: texts with times, as lines, as JSON, as subtitles that a player reads."""

import itertools
import json

import av
import pytest

from onlooker.world.lexicon import SHAPES

CLIP = ("narrate", "synthetic:2:12", "--device", "cpu", "--model", "pocket-aware", "--prompt", "what is there now?")


def cues_of(path) -> list[tuple[float, str]]:
    """The subtitles as FFmpeg reads them."""
    with av.open(str(path)) as opened:
        stream = opened.streams[0]
        return [
            (float(packet.pts * stream.time_base), bytes(packet).decode())
            for packet in opened.demux(stream)
            if packet.size
        ]


@pytest.mark.parametrize("kind", ["vtt", "srt"])
def test_texts_are_lines_and_subtitles(run, tmp_path, kind) -> None:
    ran = run(*CLIP, "--subtitles", tmp_path / f"told.{kind}")
    assert ran.code == 0
    lines = ran.out.splitlines()
    texts = [line.partition("] ")[2] for line in lines]
    assert len(lines) >= 3 and all(one != other for one, other in itertools.pairwise(texts)), "no text twice"
    cues = cues_of(tmp_path / f"told.{kind}")
    assert [text for _, text in cues] == texts
    assert [f"[0:{time_s:02.0f}]" for time_s, _ in cues] == [line.partition(" ")[0] for line in lines]


def test_without_a_prompt_a_built_in_model_is_asked_what_it_was_taught(run) -> None:
    told = run("narrate", "synthetic:2:12", "--device", "cpu")
    lines = told.out.splitlines()
    assert told.code == 0 and lines and all(line.endswith(" came") for line in lines), told.out
    # In the second in which it came: the model was taught on whole frames, and they are read whole.
    assert lines == ["[0:03] pink circle came", "[0:08] orange star came"]
    newest = run("narrate", "synthetic:2:5", "--device", "cpu", "--model", "pocket-naive", "--json")
    texts = [row["text"] for row in map(json.loads, newest.out.splitlines()) if row["event"] == "text"]
    assert texts and set(texts) <= {*SHAPES, "none"}, texts
    cut = run("chapters", "synthetic:2:6", "--device", "cpu", "--json")
    assert json.loads(cut.out.splitlines()[0])["title"] in {*SHAPES, "none"}, cut.out


def test_texts_in_json_and_another_policy(run) -> None:
    ran = run(*CLIP, "--response", "clock:period_s=4,first_s=1", "--json")
    assert ran.code == 0
    *texts, end = (json.loads(line) for line in ran.out.splitlines())
    assert {line["event"] for line in texts} == {"text"} and {line["time_s"] for line in texts} <= {1.0, 5.0, 9.0}
    assert end["texts"] == len(texts) == end["stream"]["notes"] and end["stream"]["answers"] == 0


def test_what_cannot_be_is_said_before_a_model_is_loaded(run, tmp_path) -> None:
    for wrong in (("--subtitles", tmp_path / "told.txt"), ("--response", "shout"), ("--longest", "0")):
        assert run(*CLIP, *wrong, "--model", "/no/such/model").code == 2


@pytest.mark.slow
def test_what_is_written_in_the_picture_is_noted(run, tmp_path) -> None:
    """Real pictures through the real reader: a line once, however long it stands there."""
    from PIL import Image, ImageDraw, ImageFont

    for number in range(3):
        picture = Image.new("RGB", (480, 160), (30, 60, 90))
        ImageDraw.Draw(picture).text((30, 50), "GATE 42", fill=(255, 255, 255), font=ImageFont.load_default(44))
        picture.save(tmp_path / f"{number:03d}.png")
    ran = run("watch", tmp_path, "--ocr", 1, "--pace", "max", "--json", "--device", "cpu")
    assert ran.code == 0, ran.err
    notes = [row for row in map(json.loads, ran.out.splitlines()) if row["event"] == "note"]
    assert [(row["kind"], row["text"].replace(" ", "").upper()) for row in notes] == [("text", "GATE42")]
