"""What is said in a file: real sound through the real library up to its model, which hears beeps instead of words."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from onlooker.core.errors import InputError
from onlooker.video.speech import Spoken, SpokenSoFar, Whisper

RATE = 16_000
BEEPS = ((1.0, 1.5, 440), (3.0, 3.4, 880), (5.2, 5.8, 440))
"""From, to, pitch."""


def beeping(path: Path, seconds: float = 6.0, sound: bool = True) -> Path:
    """A grey film with beeps in it."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=4)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = out.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for number in range(int(seconds * 4)):
            picture = np.full((64, 64, 3), 40 + number, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode())
        if audio is not None:
            at = np.arange(int(seconds * RATE)) / RATE
            wave = sum(np.sin(2 * np.pi * pitch * at) * ((at >= a) & (at < b)) for a, b, pitch in BEEPS)
            frame = av.AudioFrame.from_ndarray((0.5 * wave).astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            out.mux(audio.encode(frame))
            out.mux(audio.encode())
    return path


class HearsBeeps:
    """In the place of the library's model: cuts the sound where it is loud, by its own decoder."""

    def __init__(self, name: str, **settings: object) -> None:
        if name != "beeps":
            raise ValueError(f"Invalid model size '{name}'")

    def transcribe(self, file: str, **settings: object):
        from faster_whisper import decode_audio

        sound = np.asarray(decode_audio(file, sampling_rate=RATE))

        def segments():
            loud = np.convolve(np.abs(sound), np.ones(800) / 800, "same") > 0.05
            edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
            for first, last in edges.reshape(-1, 2):
                part = sound[first:last]
                pitch = np.argmax(np.abs(np.fft.rfft(part))) * RATE / len(part)
                yield SimpleNamespace(start=first / RATE, end=last / RATE, text=f" {pitch:.0f} hertz ")

        return segments(), None


@pytest.fixture
def whisper(monkeypatch) -> None:
    monkeypatch.setattr("faster_whisper.WhisperModel", HearsBeeps)


def test_sentences_come_when_they_have_ended_and_once(whisper, tmp_path):
    said = SpokenSoFar(Whisper("beeps"), beeping(tmp_path / "beeps.mp4"))
    assert said.until(1.2) == [], "it is still being said"
    found = {at: said.until(at) for at in (2.0, 3.2, 4.0)}
    assert [len(found[at]) for at in (2.0, 3.2, 4.0)] == [1, 0, 1]
    (first,) = found[2.0]
    assert abs(first.start_s - 1.0) < 0.1 and abs(first.end_s - 1.5) < 0.1 and abs(int(first.text.split()[0]) - 440) < 9
    assert [abs(one.start_s - 5.2) < 0.1 for one in said.rest()] == [True] and said.until(99.0) == said.rest() == []


def test_times_are_the_streams(tmp_path):
    class Reader:
        kind = "speech"

        def read(self, file):
            yield Spoken(1.0, 2.0, "a")
            yield Spoken(2.0, 3.0, "b")

    said = SpokenSoFar(Reader(), tmp_path, at_s=10.0)
    assert said.until(12.0) == [Spoken(11.0, 12.0, "a")] and said.rest() == [Spoken(12.0, 13.0, "b")]


def test_what_cannot_be_read_is_named(whisper, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no such speech model"):
        Whisper("shout")
    with pytest.raises(InputError, match="no sound"):
        list(Whisper("beeps").read(beeping(tmp_path / "silent.mp4", sound=False)))
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(InputError, match=r"onlooker\[speech\]"):
        Whisper()


def test_the_library_offers_what_is_asked_of_it():
    """Names and settings of the real class, which the fake stands for; no model is fetched."""
    import inspect

    from faster_whisper import WhisperModel, available_models

    assert {"device", "compute_type"} <= set(inspect.signature(WhisperModel.__init__).parameters)
    wanted = {"language", "vad_filter", "condition_on_previous_text"}
    assert wanted <= set(inspect.signature(WhisperModel.transcribe).parameters)
    assert {"tiny", "base", "small", "medium", "turbo"} <= set(available_models())


def test_speech_is_noted_while_a_film_is_watched(whisper, run, tmp_path):
    path = beeping(tmp_path / "beeps.mp4")
    here = ("--model", "pocket-naive", "--device", "cpu", "--compressor", "identity")
    ran = run("watch", path, "--speech", "beeps", "--pace", "max", "--json", *here)
    assert ran.code == 0, ran.err
    notes = [row for row in map(json.loads, ran.out.splitlines()) if row.get("event") == "note"]
    assert [(row["kind"], row["text"].split()[1], round(row["time_s"])) for row in notes][:2] == [
        ("speech", "hertz", 2), ("speech", "hertz", 3),
    ]  # fmt: skip


def test_speech_of_what_is_no_file_is_refused(whisper, run):
    ran = run("watch", "synthetic:1", "--speech", "beeps")
    assert ran.code == 2 and "files only" in ran.err
