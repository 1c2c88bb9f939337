"""A server in a process of its own, a Pocket World clip as a webcam, and a headless Chromium that looks at the page."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from ports import free_port

from onlooker.world import Episode, make_episode, write_video

KEY = "a-key-for-the-page-tests"
SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def episode() -> Episode:
    """Half a minute of the world: a cross comes first, and a pink star is there from second 9.4 to 14."""
    return make_episode(1, "test", duration_s=24.0)


@pytest.fixture(scope="session")
def camera(episode: Episode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as raw YUV4MPEG2, which Chromium plays as its webcam at the clip's own pace."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W256 H256 F4:1 Ip A1:1 C420jpeg\n")
        for frame in episode.frames(fps=4.0, size=(256, 256)):
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24").reformat(format="yuv420p")
            file.write(b"FRAME\n" + picture.to_ndarray().tobytes())
    return path


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds as an MP4 file."""
    path = tmp_path_factory.mktemp("film") / "clip.mp4"
    write_video(make_episode(4, "test", duration_s=5.0), path, fps=4, size=(128, 192))
    return path


@pytest.fixture(scope="session")
def whole_film(episode: Episode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The camera's clip as an MP4 file."""
    path = tmp_path_factory.mktemp("film") / "whole.mp4"
    write_video(episode, path, fps=4, size=(256, 256))
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `onlooker serve pocket-aware --source demo=synthetic:1`, which needs a key."""
    with server_at(free_port(), tmp_path_factory.mktemp("served") / "server.log", KEY) as address:
        yield address


@contextlib.contextmanager
def server_at(port: int, log: Path, key: str | None = None) -> Iterator[str]:
    """A server of its own on a port, ready; its address."""
    command = [
        sys.executable,
        "-m",
        "onlooker",
        "serve",
        "pocket-aware",
        "--source",
        "demo=synthetic:1",
        "--device",
        "cpu",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"ONLOOKER_API_KEY": key} if key else {})
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--log", "plain"], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(address: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until a server takes work."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the server did not come up:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")  # its driver keeps an event loop in this thread, and tests behind it run their own
def chromium() -> Iterator[tuple[Any, str | None]]:
    """Playwright's driver of Chromium, and the system's browser if there is one; None means Playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = next((path for name in SYSTEM_BROWSERS if (path := shutil.which(name))), None)
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed: apt-get install chromium")
        yield playwright.chromium, found


@pytest.fixture
def launch(chromium: tuple[Any, str | None]) -> Iterator[Callable]:
    """`launch(*flags)` starts a headless Chromium that ends with the test."""
    driver, path = chromium
    browsers = []

    def start(*flags: str):
        # A container has no sandbox of its own to give, and no GPU.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *flags]
        browsers.append(driver.launch(executable_path=path, args=arguments))
        return browsers[-1]

    yield start
    for browser in browsers:
        browser.close()


@pytest.fixture
def launch_with_camera(launch: Callable, camera: Path) -> Callable:
    """As `launch`, with the clip as its webcam: it begins with the first page that opens the camera."""
    flags = (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    )
    return lambda: launch(*flags)


@pytest.fixture
def open_page(launch_with_camera, served: str) -> Iterator[Callable]:
    """`open_page(...)` opens the page with a key in hand; at the end nothing may have gone wrong in it."""
    wrongs: list[str] = []
    contexts = []

    def start(browser=None, key: str | None = KEY, **options):
        context = (browser or launch_with_camera()).new_context(
            **({"viewport": {"width": 1360, "height": 850}} | options)
        )
        contexts.append(context)
        context.set_default_timeout(60_000)
        if key is not None:
            context.add_init_script(f"sessionStorage.setItem('onlooker-key', {key!r})")
        page = context.new_page()
        page.on("pageerror", lambda error: wrongs.append(f"error: {error}"))
        page.on("console", lambda said: wrongs.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(served)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not wrongs, wrongs
