"""The page, used as a person would: headless Chromium, a Pocket World clip as the webcam, the real server and model."""

import base64
import json
import os
import re
import urllib.request
from pathlib import Path

import pytest
from browsing import KEY, server_at
from PIL import Image
from playwright.sync_api import Page, expect
from ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.slow]
PATIENT_MS = 60_000
NAMELESS = """() => [...document.querySelectorAll('button, input, select')]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length || one.title))
  .map((one) => one.outerHTML)"""
CUT = """() => [...document.querySelectorAll('.figures *, .tag *, .note, .tabs *, .segments *')]
  .filter((one) => one.checkVisibility() && getComputedStyle(one).display !== 'inline')
  .filter((one) => one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.textContent)"""
PAINTED = """() => {
  const canvas = document.getElementById('overlay');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let blue = 0, orange = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    if (!pixels[at + 3]) continue;
    if (pixels[at + 2] > pixels[at]) blue++; else orange++;
  }
  return [blue, orange];
}"""


def sessions(address: str) -> set[str]:
    """The sessions open now, perhaps with those of other tests: a page that is cut off cannot end its own."""
    request = urllib.request.Request(f"{address}/v1/streaming/sessions", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return {one["session_id"] for one in json.loads(reply.read())["sessions"]}


def start_camera(page: Page) -> None:
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.locator("#f-kept")).to_have_text("19 of 64", timeout=PATIENT_MS)


def ask(page: Page, question: str) -> str:
    page.keyboard.press("/")
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    turn = page.locator(".turn").last
    expect(turn.locator(".note")).not_to_be_empty(timeout=PATIENT_MS)
    return turn.locator(".said").inner_text()


def test_a_person_watches_asks_and_is_alerted(open_page, served: str) -> None:
    others = sessions(served)
    page = open_page()
    start_camera(page)
    (own,) = sessions(served) - others

    page.get_by_role("tab", name="Alerts").click()
    page.get_by_label("What to look for").fill("say yes when you see a pink star.")
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Hold, seconds").fill("1")
    page.get_by_role("button", name="Add").click()
    expect(page.locator(".rule")).to_contain_text("say yes when you see a pink star.")
    expect(page.locator(".rule .likely")).to_contain_text("alert from 70%", timeout=PATIENT_MS)
    page.get_by_role("tab", name="Ask").click()
    expect(page.get_by_role("tab", name="Alerts")).to_contain_text("1", timeout=PATIENT_MS)
    told = page.locator("#log .alarm")
    expect(told).to_contain_text("say yes when you see a pink star.")
    expect(told).to_contain_text(re.compile(r"Alert at 0:\d\d, yes \d+%"))
    assert page.title() == "(1) Onlooker"

    # What the model says is what the world's script says.
    assert ask(page, "did a pink star ever appear?") == "yes"
    assert ask(page, "which shape came first?") == "cross"

    blue, orange = page.evaluate(PAINTED)
    assert blue > 200 and orange > 200, "kept tokens are outlined, recomputed patches tinted"
    assert re.match(r"\d+ ms|\d+(\.\d)? s", page.locator("#f-lag").inner_text())
    expect(page.locator("#f-bytes")).to_contain_text("MiB")

    page.locator(".cite").first.click()
    expect(page.locator("#tag-text")).to_have_text(re.compile(r"At 0:\d\d"))
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#video")).to_be_hidden()
    expect(page.locator("#question")).to_have_attribute("placeholder", re.compile("Ask about 0:"))
    page.keyboard.press("Escape")
    expect(page.locator("#tag-text")).to_have_text(re.compile(r"Live 0:\d\d"))
    told.click()
    expect(page.get_by_role("button", name="Back to live")).to_be_visible()
    page.get_by_role("button", name="Back to live").click()

    page.get_by_role("tab", name="Alerts").click()
    assert page.title() == "Onlooker"
    expect(page.locator(".rule .told")).to_contain_text("1 alert")
    page.get_by_role("button", name=re.compile("Remove")).click()
    expect(page.locator(".rule")).to_have_count(0)

    page.get_by_role("button", name="Change source").click()
    expect(page.get_by_role("heading", name="What should be watched?")).to_be_visible()
    page.wait_for_function("() => document.getElementById('question').disabled")
    for _ in range(300):
        if own not in sessions(served):
            break
        page.wait_for_timeout(100)
    assert own not in sessions(served), "leaving ends the session"


def test_a_screen_is_shared_watched_and_asked_about(open_page, launch, whole_film) -> None:
    """What is shared is another tab, in which the clip plays: no machine's own screen is needed."""
    page = open_page(launch("--auto-select-tab-capture-source-by-title=The film"))
    film = page.context.new_page()
    film.set_viewport_size({"width": 512, "height": 512})
    clip = base64.b64encode(whole_film.read_bytes()).decode()
    film.set_content(
        "<title>The film</title><style>body { margin: 0 } video { width: 100vw; height: 100vh }</style>"
        f"<video muted src='data:video/mp4;base64,{clip}'></video>"
    )
    film.wait_for_function("() => document.querySelector('video').readyState >= 3")
    page.bring_to_front()
    page.get_by_role("button", name="Screen").click()
    film.evaluate("() => document.querySelector('video').play()")
    expect(page.locator("#f-kept")).to_have_text("19 of 64", timeout=PATIENT_MS)
    # What came first is known for sure once the clip has shown more than that.
    film.wait_for_function("() => document.querySelector('video').currentTime > 12")
    assert ask(page, "which shape came first?") == "cross"
    film.close()
    expect(page.locator("#notice")).to_contain_text("The screen was switched off.", timeout=PATIENT_MS)


def test_what_the_server_watches_can_be_looked_at_and_asked_about(open_page) -> None:
    page = open_page()
    page.get_by_role("button", name=re.compile("demo")).click()
    expect(page.locator("#f-kept")).to_have_text("19 of 64", timeout=PATIENT_MS)
    page.wait_for_function("() => document.getElementById('picture').naturalWidth > 0")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    page.locator(".offer").first.click()
    expect(page.locator(".turn .said")).to_have_text(re.compile(r"^[0-9]$"), timeout=PATIENT_MS)
    page.wait_for_function("() => document.querySelector('.cite img').naturalWidth > 0")


def test_a_file_plays_to_its_end_and_can_still_be_asked_about(open_page, film) -> None:
    page = open_page()
    page.set_input_files("#file", film)
    expect(page.locator("#notice")).to_contain_text("The video has ended.", timeout=PATIENT_MS)
    expect(page.locator("#tag-text")).to_contain_text("Ended")
    assert ask(page, "how many shapes are visible now?").isdigit()
    seek = page.get_by_role("slider", name="Moment of the stream")
    seek.focus()
    page.keyboard.press("Home")
    expect(page.locator("#tag-text")).to_have_text("At 0:00")
    assert seek.get_attribute("aria-valuetext") == "0:00"
    page.keyboard.press("End")
    expect(page.locator("#tag-text")).to_contain_text("Ended")


def test_a_file_that_is_no_video_is_refused_in_words(open_page, tmp_path) -> None:
    (tmp_path / "notes.mp4").write_text("not a video")
    page = open_page()
    page.set_input_files("#file", tmp_path / "notes.mp4")
    expect(page.get_by_role("alert")).to_contain_text("cannot be played", timeout=PATIENT_MS)
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_enabled()


def test_a_camera_that_is_not_given_is_explained(open_page, launch) -> None:
    page = open_page(launch("--use-fake-device-for-media-stream=device-count=0"))
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The camera cannot be opened.", timeout=PATIENT_MS)


def test_a_key_is_asked_for_and_a_wrong_one_is_told(open_page) -> None:
    page = open_page(key=None)
    dialog = page.get_by_role("dialog", name="This server needs a key")
    expect(dialog).to_be_visible()
    page.get_by_role("textbox", name="Key").fill("a-key-that-is-not-known")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("That key is not known here.")
    page.get_by_role("textbox", name="Key").fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#model")).to_have_text("pocket-aware")


def test_a_lost_connection_is_told_and_mended(open_page) -> None:
    page = open_page()
    start_camera(page)
    expect(page.locator("#tag")).to_have_text(re.compile("Live"))
    page.context.set_offline(True)
    expect(page.locator("#notice")).to_contain_text("Trying again", timeout=PATIENT_MS)
    expect(page.locator("#tag")).to_have_text(re.compile("Not connected"))
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_be_hidden(timeout=PATIENT_MS)
    frames = int(page.locator("#f-frames").inner_text())
    page.wait_for_function(f"() => Number(document.getElementById('f-frames').textContent) > {frames}")


def test_a_session_that_ended_is_told(open_page, served: str) -> None:
    others = sessions(served)
    page = open_page()
    start_camera(page)
    (own,) = sessions(served) - others
    address = f"{served}/v1/streaming/sessions/{own}"
    request = urllib.request.Request(address, headers={"authorization": f"Bearer {KEY}"}, method="DELETE")
    urllib.request.urlopen(request, timeout=30).close()
    expect(page.locator("#notice")).to_contain_text("This session has ended", timeout=PATIENT_MS)
    expect(page.locator("#question")).to_be_disabled()
    expect(page.locator("#tag")).to_have_text(re.compile("Ended"))
    expect(page.locator("#picture")).to_be_visible()  # the last picture, of a camera that is off
    off = "() => document.getElementById('video').srcObject.getTracks().every((one) => one.readyState === 'ended')"
    page.wait_for_function(off)
    page.get_by_role("button", name="Choose a source").click()
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
def test_nothing_is_cut_off_and_everything_has_a_name(open_page, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    page.get_by_role("button", name=re.compile("demo")).click()
    expect(page.locator("#f-kept")).to_have_text("19 of 64", timeout=PATIENT_MS)
    page.locator(".offer").first.click()
    expect(page.locator(".turn .note")).not_to_be_empty(timeout=PATIENT_MS)
    for tab in ("Ask", "Alerts"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate(CUT) == []
        assert page.evaluate(NAMELESS) == []


def test_dark_and_light_are_readable(open_page) -> None:
    """The contrast of text against what is behind it, at least 4.5 to 1, in both schemes."""
    ratio = """(pairs) => pairs.map(([text, ground]) => {
      const probe = document.createElement('i');
      document.body.append(probe);
      const light = (name) => {
        probe.style.color = `var(${name})`;
        const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((v) => v / 255)
          .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
      probe.remove();
      return [text, ground, (a + 0.05) / (b + 0.05)];
    })"""
    pairs = [
        [text, ground]
        for text, grounds in {
            "--text": ("--surface", "--ground", "--sunk", "--warm-soft", "--bad-soft", "--accent-soft"),
            "--quiet": ("--surface", "--ground", "--sunk"),
            "--accent": ("--surface",),
            "--on-accent": ("--accent",),
            "--warm": ("--warm-soft",),
            "--bad": ("--surface",),
        }.items()
        for ground in grounds
    ]
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        found = page.evaluate(ratio, pairs)
        assert not [one for one in found if one[2] < 4.5], (scheme, found)


def test_its_pictures_for_the_documentation(open_page, tmp_path) -> None:
    """With ONLOOKER_PICTURES=docs they are kept."""
    folder = Path(os.environ.get("ONLOOKER_PICTURES", tmp_path))
    desk = {"viewport": {"width": 1200, "height": 760}}
    phone = {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 1.25,
        "is_mobile": True,
        "has_touch": True,
    }
    for name, options in (("page_desk", desk), ("page_phone", phone | {"color_scheme": "dark"})):
        page = open_page(**options)
        start_camera(page)
        page.get_by_role("tab", name="Alerts").click()
        page.get_by_label("What to look for").fill("say yes when you see a pink star.")
        page.get_by_role("button", name="Add").click()
        page.get_by_role("tab", name="Ask").click()
        expect(page.locator("#log .alarm")).to_be_visible(timeout=PATIENT_MS)
        for question in ("which shape came first?", "did a pink star ever appear?"):
            page.locator("#question").fill(question)
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator(".turn").last.locator(".note")).not_to_be_empty(timeout=PATIENT_MS)
        page.wait_for_function("() => [...document.querySelectorAll('.cite img')].every((one) => one.naturalWidth)")
        page.locator("#question").blur()
        file = folder / f"{name}.png"
        page.screenshot(path=file)
        with Image.open(file) as picture:
            picture.convert("RGB").save(file, optimize=True)
        assert file.stat().st_size < 450_000


def test_on_a_phone_the_picture_stays_in_view(open_page) -> None:
    page = open_page(viewport={"width": 390, "height": 780})
    page.get_by_role("button", name=re.compile("demo")).click()
    expect(page.locator("#f-kept")).to_have_text("19 of 64", timeout=PATIENT_MS)
    for number in range(4):
        page.locator("#question").fill("how many shapes are visible now?")
        page.keyboard.press("Enter")
        expect(page.locator(".turn .note")).to_have_count(number + 1)
        expect(page.locator(".turn .note").last).not_to_be_empty(timeout=PATIENT_MS)
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    box = page.locator("#stage").bounding_box()
    assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= 0.5 * 780


def test_a_restarted_server_is_watched_again(launch, tmp_path) -> None:
    """What the server watches comes back by itself on a page that was left open, and nothing says Live meanwhile."""
    port = free_port()
    page = launch().new_page()
    with server_at(port, tmp_path / "first.log") as address:
        page.goto(address)
        page.get_by_role("button", name=re.compile("demo")).click()
        expect(page.locator("#tag")).to_have_text(re.compile(r"Live 0:0[3-9]"), timeout=PATIENT_MS)
    expect(page.locator("#tag")).to_have_text(re.compile("Not connected|Starting"), timeout=PATIENT_MS)
    with server_at(port, tmp_path / "second.log"):
        expect(page.locator("#tag")).to_have_text(re.compile(r"Live 0:0\d"), timeout=PATIENT_MS)
        expect(page.locator("#log")).to_contain_text("began anew")
        assert ask(page, "how many shapes are visible now?").isdigit()
