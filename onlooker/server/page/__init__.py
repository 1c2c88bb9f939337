"""The page at /: one file, and a policy under which it can run nothing but itself."""

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

PERMISSIONS = "camera=(self), display-capture=(self), microphone=(), geolocation=()"


def page_routes() -> APIRouter:
    """The route of the page, which is read once."""
    html = resources.files(__name__).joinpath("index.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_policy(html),
        "Permissions-Policy": PERMISSIONS,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """The page."""
        return HTMLResponse(html, headers=headers)

    return routes


def content_policy(html: str) -> str:
    """A Content-Security-Policy that allows the scripts and styles inside this page, by their digests."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digests(html, 'script')}",
            f"style-src {_digests(html, 'style')}",
            "img-src 'self' blob: data:",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )


def _digests(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, flags=re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)
