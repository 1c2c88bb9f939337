"""Every list to choose from has room for its longest line, on a desk and on a phone."""

import re
from importlib import resources

import pytest

pytestmark = pytest.mark.live
ROOM = """() => {
  for (const one of document.querySelectorAll("[hidden]")) one.hidden = false
  for (const one of document.querySelectorAll("details")) one.open = true
  const pen = document.createElement("canvas").getContext("2d")
  return [...document.querySelectorAll("select")].map((one) => {
    const style = getComputedStyle(one)
    pen.font = style.font
    const longest = Math.max(...[...one.options].map((option) => pen.measureText(option.text).width))
    return [one.id, one.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight), longest]
  })
}"""
ARROW = 18
"""Pixels of the arrow beside the line."""


@pytest.mark.parametrize("width", [1360, 390])
def test_no_choice_is_cropped(launch, width) -> None:
    text = (resources.files("onlooker.server.page") / "index.html").read_text(encoding="utf-8")
    page = launch().new_page(viewport={"width": width, "height": 850})
    page.set_content(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    found = page.evaluate(ROOM)
    assert len(found) > 3 and not [name for name, room, longest in found if room < longest + ARROW], found
