"""A hook of the documentation site: links into the code, which is no part of the site, become plain names."""

import re
from typing import Any


def on_page_markdown(markdown: str, **context: Any) -> str:
    """`[text](../onlooker/x.py)` as `text`; anchors and links within the site stay."""
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", markdown)
