"""Bad pictures are said: frozen, black, covered, blurred, of a wrong clock; and good ones are not called bad."""

import io

import numpy as np
import pytest
from cameras import Camera, transport_stream
from PIL import Image, ImageFilter
from running_server import eventually, opened, push, running

from onlooker.core.frame import Frame
from onlooker.server.quality import Quality
from onlooker.server.settings import Source
from onlooker.world import make_episode

NOW = 1_700_000_000.0
RNG = np.random.default_rng(5)


def scene(seed: int = 3, seconds: float = 40.0) -> list[np.ndarray]:
    """Pictures of Pocket World as a camera would send them, a second apart: with noise."""
    frames = make_episode(seed, "test", duration_s=seconds).frames(fps=1.0)
    return [(frame.image + RNG.normal(0, 3, frame.image.shape)).clip(0, 255).astype(np.uint8) for frame in frames]


def seen(images: list[np.ndarray], quality: Quality | None = None, start_s: float = 0.0, **more) -> Quality:
    quality = quality or Quality()
    for number, image in enumerate(images):
        quality.see(Frame(image, start_s + number, **more), NOW + number)
    return quality


def black(image: np.ndarray) -> np.ndarray:
    return RNG.integers(0, 5, image.shape).astype(np.uint8)


def covered(image: np.ndarray) -> np.ndarray:
    hand = np.full(image.shape, 120.0) + RNG.normal(0, 1, image.shape)
    return hand.clip(0, 255).astype(np.uint8)


def blurred(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(12)))


@pytest.mark.parametrize("name", ["black", "covered", "blurred"])
def test_a_bad_picture_is_told_while_it_lasts(name):
    images = scene()
    spoil = {"black": black, "covered": covered, "blurred": blurred}[name]
    quality = seen(images[:15])
    assert quality.problems == []
    seen([spoil(image) for image in images[15:17]], quality, 15.0)
    assert quality.problems == [], "two frames may be an accident"
    seen([spoil(image) for image in images[17:25]], quality, 17.0)
    assert quality.problems == [name] and "for 9 s" in quality.texts[0]
    seen(images[25:26], quality, 25.0)
    assert quality.problems == []


def test_a_frozen_picture_is_told_with_its_seconds_and_noise_is_no_change():
    image = scene()[10]
    quality = seen([image] * 30)
    assert quality.problems == []
    faint = [(image.astype(int) + RNG.integers(-3, 4, image.shape)).clip(0, 255).astype(np.uint8) for _ in range(11)]
    seen(faint, quality, 30.0)
    assert quality.problems == ["frozen"] and quality.texts == ["the picture has not changed for 40 s"]
    moved = image.copy()
    moved[10:16, 10:16] = 255 - moved[10:16, 10:16]
    seen([moved], quality, 41.0)
    assert quality.problems == [], "a small thing that moved is a change"


def test_slow_changes_add_up():
    image = scene()[10].astype(int)
    dusk = [(image - n).clip(0, 255).astype(np.uint8) for n in range(60)]
    assert seen(dusk).problems == []


def test_a_wrong_clock_is_told_and_a_right_or_absent_one_is_not():
    images = scene(seconds=8.0)
    assert seen(images, wall_time_s=NOW + 5).problems == []
    assert seen(images).problems == []
    assert seen(images, wall_time_s=NOW - 3600).problems == ["clock"]


def test_what_is_bad_does_not_become_usual():
    images = scene()
    quality = seen(images[:15])
    seen([blurred(image) for image in images * 20], quality, 15.0)
    assert "blurred" in quality.problems


@pytest.mark.parametrize("seed", range(12))
def test_good_pictures_are_not_called_bad(seed):
    told = set()
    quality = Quality()
    for frame in make_episode(seed, "test", duration_s=60.0).frames(fps=2.0):
        quality.see(frame, NOW)
        told |= set(quality.problems)
    assert told <= {"frozen"}, told


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2000), (720, 1280)])
def test_pictures_of_any_shape(shape):
    quality = Quality()
    for number in range(5):
        quality.see(Frame(np.full((*shape, 3), 99, np.uint8), float(number)), NOW)
    assert quality.problems == ["covered"]


# ------------------------------------------------------------------------------------------------ a running server

ASKED = {"question": "what is there now?"}


def test_a_frozen_session_is_told_in_words(client, jpegs):
    path = opened(client)
    push(client, path, jpegs[:3])
    assert client.post(f"{path}/ask", json=ASKED).json()["warnings"] == []
    push(client, path, [jpegs[3]] * 34, start_s=3.0)
    warned = ["the picture has not changed for 33 s"]
    assert client.get(path).json()["warnings"] == warned and client.get(path).json()["problems"] == ["frozen"]
    assert client.post(f"{path}/ask", json=ASKED).json()["warnings"] == warned
    assert client.post(f"{path}/ask", json=ASKED | {"at": 2.0}).json()["warnings"] == [], "that moment was good"
    push(client, path, [jpegs[11]], start_s=60.0)
    assert client.get(path).json()["warnings"] == []
    client.delete(path)


def test_a_black_camera_alerts_and_is_not_asked_about_now(pocket, tmp_path):
    dark = transport_stream(spoil=lambda image: np.zeros_like(image))
    with Camera(dark) as camera, Camera(dark) as other:
        sources = (Source("cam", camera.url, bad_pictures="refuse"), Source("told", other.url))
        with running(pocket, sources=sources, source_fps=2.0, state=tmp_path) as server, server.client() as client:
            bad = lambda: client.get("/v1/streaming/sessions/cam").json().get("problems")  # noqa: E731
            eventually(lambda: bad() == ["black"])
            refused = client.post("/v1/streaming/sessions/cam/ask", json=ASKED)
            assert refused.status_code == 409 and refused.json()["error"]["code"] == "bad_picture"
            assert "black" in refused.json()["error"]["message"] and refused.headers["retry-after"]
            assert client.post("/v1/streaming/sessions/cam/ask", json=ASKED | {"at": 0.5}).status_code == 200
            found = lambda kind: client.get("/v1/search", params={"kind": kind, "q": "black"}).json()["events"]  # noqa: E731
            eventually(lambda: {one["stream"] for one in found("quality")} == {"cam", "told"})
            eventually(lambda: {one["stream"] for one in found("alert")} == {"cam"})
            assert found("alert")[0]["facts"]["rule"] == "picture" and found("alert")[0]["picture"]
            metrics = client.get("/metrics").text
            assert 'onlooker_source_bad_picture{problem="black",source="cam"} 1.0' in metrics
            assert 'onlooker_source_bad_picture{problem="frozen",source="cam"} 0.0' in metrics


@pytest.mark.proves("artic", 1)
def test_every_picture_that_is_held_is_marked_stale(pocket):
    with running(pocket) as server, server.client() as client:
        with Camera(transport_stream()) as camera:
            client.put("/v1/admin/sources/cam", json={"url": camera.url, "fps": 5})
            seen = lambda: client.get("/v1/streaming/sessions/cam").json()  # noqa: E731
            eventually(lambda: seen().get("frames", 0) >= 3 and not seen()["stale"])
            fresh = client.get("/v1/streaming/sources/cam/latest.jpg", params={"height": 64})
            assert fresh.headers["x-stale"] == "false" and float(fresh.headers["x-age-s"]) < 60
            assert Image.open(io.BytesIO(fresh.content)).size == (64, 64)
            assert client.post("/v1/streaming/sessions/cam/ask", json=ASKED).json()["warnings"] == []
        eventually(lambda: seen()["source"]["state"] == "lost")
        for path in ("sessions/cam/preview.jpg", "sources/cam/latest.jpg"):
            assert client.get(f"/v1/streaming/{path}").headers["x-stale"] == "true"
        (warning,) = client.post("/v1/streaming/sessions/cam/ask", json=ASKED).json()["warnings"]
        assert warning.startswith("the newest picture is ") and seen()["stale"]
        assert 'onlooker_source_stale{source="cam"} 1.0' in client.get("/metrics").text
