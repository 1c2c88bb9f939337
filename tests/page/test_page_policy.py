"""The page runs nothing but itself: its Content-Security-Policy allows its own script and style by their digests."""

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from fastapi.testclient import TestClient

from onlooker.server.page import content_policy, page_routes


def page_reply():
    app = FastAPI()
    app.include_router(page_routes())
    return TestClient(app).get("/")


def test_the_page_is_served_under_a_strict_policy() -> None:
    reply = page_reply()
    assert reply.status_code == 200 and reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    (script,) = re.findall(r'<script type="module">(.*?)</script>', reply.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "camera=(self)" in reply.headers["permissions-policy"]


def test_a_changed_page_has_another_policy() -> None:
    html = page_reply().text
    assert content_policy(html) != content_policy(html.replace("begin();\n</script>", "begin(1);\n</script>"))


def test_the_page_needs_nothing_from_elsewhere_and_has_no_inline_handlers() -> None:
    html = resources.files("onlooker.server.page").joinpath("index.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html), "no file beside the page"
    assert "http://www.w3.org/2000/svg" in html
    assert set(re.findall(r"https?://[^\s'\"`)]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)=", html.partition("<script")[0]), "the policy would refuse them"
    assert "innerHTML" not in html and "eval(" not in html and "insertAdjacentHTML" not in html
