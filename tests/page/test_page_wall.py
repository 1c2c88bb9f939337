"""The wall, the day, and the talk that outlives the page: a headless Chromium before a server with several sources."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import wait_until_ready
from playwright.sync_api import Page, expect
from ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.slow]
PATIENT_MS = 90_000
AXE = Path(sys.prefix) / "clients/node_modules/axe-core/axe.min.js"
"""What `make test-live` installs; with it every view is looked through for what some people cannot use."""


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that watches three things, one of which is not there, and keeps what happens."""
    folder = tmp_path_factory.mktemp("walled")
    port = free_port()
    (folder / "onlooker.toml").write_text(f"""
[model]
name = "pocket-aware"
device = "cpu"
[server]
port = {port}
fps = 1.0
state = "{folder}/state"
log = "plain"
[[sources]]
name = "door"
url = "synthetic:1"
rules = [{{ name = "shape", prompt = "say yes when you see a shape.", policy = "clock", period_s = 4 }}]
questions = [{{ name = "count", text = "how many shapes are visible now?", every_s = 5 }}]
[[sources]]
name = "yard"
url = "synthetic:2"
[[sources]]
name = "gone"
url = "rtsp://127.0.0.1:1/none"
""")
    words = [sys.executable, "-m", "onlooker", "serve", "--config", str(folder / "onlooker.toml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def open_wall(launch, walled: str) -> Iterator[Callable]:
    """`open_wall(path, ...)` opens the page of that server; at the end nothing may have gone wrong in it."""
    wrongs: list[str] = []
    browser = launch()

    def start(path: str = "", **options) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1360, "height": 850}} | options))
        context.set_default_timeout(PATIENT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: wrongs.append(f"error: {error}"))
        page.on("console", lambda said: wrongs.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(f"{walled}/{path}")
        return page

    yield start
    assert not wrongs, wrongs


def keep(page: Page, name: str) -> None:
    """With ONLOOKER_PICTURES=FOLDER a picture of what is seen is kept, to be looked at."""
    if folder := os.environ.get("ONLOOKER_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")
    if AXE.exists():
        page.evaluate(AXE.read_text())
        found = page.evaluate("async () => (await axe.run()).violations.map((one) => [one.id, one.nodes[0].html])")
        assert found == [], (name, found)


def tile(page: Page, name: str):
    return page.locator(f"#sources li[data-name={name}]")


def test_the_wall_tells_the_truth_and_leads_to_a_stream(open_wall) -> None:
    page = open_wall()
    expect(tile(page, "door").locator(".chip")).to_contain_text("Live", timeout=PATIENT_MS)
    expect(tile(page, "gone").locator(".chip")).to_have_text(re.compile("Lost|Connecting"))
    page.wait_for_function("() => document.querySelector('#sources li[data-name=door] img').naturalWidth > 0")
    expect(tile(page, "door").locator(".newest")).to_contain_text("say yes when you see a shape.", timeout=PATIENT_MS)
    expect(tile(page, "yard").locator(".newest")).to_have_text("No alert")
    keep(page, "wall_desk")
    tile(page, "door").get_by_role("button").click()
    expect(page.locator("#tag")).to_have_text(re.compile("Live"), timeout=PATIENT_MS)
    assert page.url.endswith("#/door")


def test_a_bookmarked_stream_opens_and_its_talk_is_there_after_a_reload(open_wall) -> None:
    page = open_wall("#/yard")
    expect(page.locator("#f-frames")).not_to_have_text("-", timeout=PATIENT_MS)
    page.locator("#question").fill("how many shapes are visible now?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .note")).not_to_be_empty(timeout=PATIENT_MS)
    said = page.locator(".turn .said").inner_text()
    page.reload()
    expect(page.locator(".turn .said")).to_have_text(said, timeout=PATIENT_MS)
    expect(page.locator(".turn .asked")).to_contain_text("how many shapes")
    page.locator("#question").press("ArrowUp")
    expect(page.locator("#question")).to_have_value("how many shapes are visible now?")
    page.locator("#question").press("ArrowDown")
    expect(page.locator("#question")).to_have_value("")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as text").click()
    assert said in Path(saved.value.path()).read_text()
    keep(page, "talk_desk")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.reload()
    expect(page.locator("#tag")).to_have_text(re.compile("Live"), timeout=PATIENT_MS)
    expect(page.locator(".turn")).to_have_count(0)


def test_the_day_is_searched_and_shown(open_wall) -> None:
    page = open_wall("#/door")
    page.get_by_role("tab", name="History").click()
    expect(page.locator(".happened").first).to_be_visible(timeout=PATIENT_MS)
    page.get_by_label("Words that were said").fill("how many shapes")
    expect(page.locator(".happened .chip", has_text="Answer").first).to_be_visible(timeout=PATIENT_MS)
    expect(page.locator(".happened .chip", has_text="Alert")).to_have_count(0)
    page.get_by_label("Words that were said").fill("zebra")
    expect(page.locator("#past-count")).to_contain_text("Nothing was said or seen of door", timeout=PATIENT_MS)
    page.get_by_label("Words that were said").fill("")
    alert = page.locator(".happened", has=page.locator(".chip", has_text="Alert")).first
    expect(alert).to_be_visible(timeout=PATIENT_MS)
    keep(page, "day_desk")
    alert.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Alert, door")
    page.wait_for_function("() => document.getElementById('event-picture').naturalWidth > 0")
    keep(page, "event_desk")
    dialog.get_by_role("button", name="Show in the stream").click()
    expect(page.locator("#tag-text")).to_have_text(re.compile(r"At \d"))
    page.get_by_label("Time of day").focus()
    page.keyboard.press("Home")
    expect(page.locator(".happened.here")).to_have_count(1)


def test_a_camera_is_tested_added_and_removed(open_wall, walled: str) -> None:
    page = open_wall()
    page.get_by_role("button", name="Watch a camera by its address").click()
    page.get_by_role("textbox", name="Address").fill("rtsp://127.0.0.1:1/none")
    page.get_by_role("textbox", name="Name", exact=True).fill("extra")
    page.get_by_role("button", name="Test").click()
    expect(page.locator("#source-error")).to_be_visible(timeout=PATIENT_MS)
    page.get_by_role("textbox", name="Address").fill("synthetic:3")
    page.get_by_role("button", name="Test").click()
    page.wait_for_function("() => document.getElementById('source-picture').naturalWidth > 0")
    keep(page, "add_desk")
    page.get_by_role("button", name="Watch", exact=True).click()
    expect(tile(page, "extra").locator(".chip")).to_contain_text("Live", timeout=PATIENT_MS)
    tile(page, "extra").get_by_role("button").click()
    page.on("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Stop watching").click()
    expect(tile(page, "extra")).to_have_count(0, timeout=PATIENT_MS)
    with urllib.request.urlopen(f"{walled}/v1/admin/sources", timeout=30) as reply:
        assert "extra" not in [one["name"] for one in json.loads(reply.read())["sources"]]


def test_an_alert_is_told_on_the_desktop_while_the_page_is_hidden(open_wall) -> None:
    page = open_wall()
    page.context.grant_permissions(["notifications"])
    page.evaluate("""() => {
      window.told = [];
      window.Notification = class {
        static permission = "granted";
        constructor(title, more) { window.told.push([title, more.body]); }
      };
      Object.defineProperty(document, "visibilityState", { get: () => "hidden" });
    }""")
    tile(page, "door").get_by_role("button").click()
    page.wait_for_function("() => window.told.length > 0")
    assert page.evaluate("() => window.told[0]") == ["door: shape", "say yes when you see a shape."]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1360, "dark")])
def test_every_view_fits_and_is_readable(open_wall, width: int, scheme: str) -> None:
    page = open_wall(viewport={"width": width, "height": 844}, color_scheme=scheme)
    fits = "() => document.documentElement.scrollWidth <= window.innerWidth"
    expect(tile(page, "door").locator(".chip")).to_contain_text("Live", timeout=PATIENT_MS)
    assert page.evaluate(fits)
    keep(page, f"wall_{width}_{scheme}")
    tile(page, "door").get_by_role("button").click()
    expect(page.locator("#f-frames")).not_to_have_text("-", timeout=PATIENT_MS)
    for name in ("History", "Alerts", "Ask"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
        assert page.evaluate(fits), name
        keep(page, f"{name.lower()}_{width}_{scheme}")
    for name in ("standing", "setup"):
        page.locator(f"#{name} summary").click()
        expect(page.locator(f"#{name}[open]")).to_be_visible()
        assert page.evaluate(fits), name
        keep(page, f"{name}_{width}_{scheme}")


def test_standing_questions_settings_and_speech(open_wall):
    """Standing questions come and go; what the stream runs with is told; speech where the browser has it."""
    page = open_wall("#/yard")
    page.locator("#standing summary").click()
    page.fill("#stand-text", "what is there now?")
    page.fill("#stand-every", "2")
    page.select_option("#stand-when", "change")
    page.click("#stand-add")
    row = page.locator("#standing-list .rule")
    expect(row).to_contain_text("when the picture changes, at most every 2 s")
    keep(page, "standing_desk")
    page.locator("#setup summary").click()
    expect(page.locator("#setup-list")).to_contain_text("memory")
    expect(page.locator("#setup-list")).to_contain_text("rekv")
    keep(page, "setup_desk")
    hears, speaks = page.evaluate(
        "[Boolean(window.SpeechRecognition ?? window.webkitSpeechRecognition), Boolean(window.speechSynthesis)]"
    )
    assert page.locator("#speak").is_visible() == hears and page.locator("#aloud").is_visible() == speaks
    if speaks:
        page.evaluate("window.heard = []; speechSynthesis.speak = (one) => heard.push(one.text); null")
        page.click("#aloud")
        page.fill("#question", "how many shapes are visible now?")
        page.click("#send")
        until_true(lambda: page.evaluate("window.heard.length") == 1 and page.evaluate("window.heard[0]"))
    page.get_by_role("button", name="Remove what is there now?").click()
    expect(row).to_have_count(0)
    dark = open_wall("#/yard", viewport={"width": 390, "height": 844}, color_scheme="dark")
    dark.locator("#standing summary").click()
    keep(dark, "standing_asked_no_more")


def until_true(holds: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait until something holds; asked here and not in the page, whose policy runs no words as a script."""
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.1)
