"""Text in pictures, by a real reader, and what of it is news."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.video.texts import NewLines, Ocr


def written(text: str, time_s: float = 0.0) -> Frame:
    picture = Image.new("RGB", (480, 160), (30, 60, 90))
    if text:
        ImageDraw.Draw(picture).text((30, 50), text, fill=(255, 255, 255), font=ImageFont.load_default(44))
    return Frame(np.asarray(picture), time_s)


@pytest.mark.slow
def test_a_real_reader_reads_what_is_written():
    reader = Ocr()
    (line,) = reader.read(written("GATE 42"))
    assert line.replace(" ", "").upper() == "GATE42" and reader.kind == "text"
    assert reader.read(written("")) == []


class Says:
    """Reads the number of the frame off a list."""

    kind = "text"

    def __init__(self, *lines: list[str]) -> None:
        self.lines = lines

    def read(self, frame: Frame) -> list[str]:
        return self.lines[int(frame.time_s)]


def test_only_what_is_new_is_told_and_only_so_often():
    lines = (["a", "b"], ["c"], ["B", "d", "d"], ["x"], ["a"])
    news = NewLines(Says(*lines), every_s=2.0)
    assert [news.look(written("", float(at))) for at in range(5)] == [["a", "b"], [], ["d"], [], []]
    short = NewLines(Says(*lines), every_s=0.0, remembered=2)
    assert [short.look(written("", float(at))) for at in range(5)] == [["a", "b"], ["c"], ["d"], ["x"], ["a"]]


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="every_s"):
        NewLines(Says(), every_s=-1)
    with pytest.raises(InputError, match="least"):
        Ocr(least=2.0)


def test_without_the_package_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rapidocr_onnxruntime", None)
    with pytest.raises(InputError, match=r"onlooker\[ocr\]"):
        Ocr()
