"""The page at /docs: every call with its parameters, bodies and replies, as plain HTML without a script."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

from onlooker.server.page import content_policy

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.55 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h2 { margin: 2.5rem 0 .5rem; text-transform: capitalize; }
summary { cursor: pointer; padding: .45rem 0; overflow-wrap: anywhere; }
summary span { opacity: .75; }
code { font: 13px/1.5 ui-monospace, monospace; }
b.verb { display: inline-block; min-width: 4.2rem; font: 600 12px ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1rem; }
td, th { border-bottom: 1px solid #8885; padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
details { border-bottom: 1px solid #8883; } details > div { padding: 0 0 .6rem 1rem; overflow-x: auto; }
"""


def reference_routes(app: FastAPI) -> APIRouter:
    """The route of the description of an application's own calls."""
    routes = APIRouter()

    @routes.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The calls of this server."""
        html = page_of(app.openapi())
        return HTMLResponse(html, headers={"Content-Security-Policy": content_policy(html)})

    return routes


def page_of(described: dict[str, Any]) -> str:
    """An OpenAPI description as a page."""
    calls: dict[str, list[str]] = {}
    for path, verbs in described["paths"].items():
        for verb, call in verbs.items():
            group = (call.get("tags") or ["other"])[0]
            calls.setdefault(group, []).append(_call(verb, path, call))
    schemas = described.get("components", {}).get("schemas", {})
    bodies = "".join(_schema(name, schema) for name, schema in sorted(schemas.items()))
    groups = "".join(f"<h2>{escape(name)}</h2>{''.join(found)}" for name, found in calls.items())
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        "<p>The same for programs: <a href=/openapi.json>/openapi.json</a>. <a href=/>The page</a></p>"
        f"{groups}<h2>Bodies</h2>{bodies}</body></html>"
    )


def _call(verb: str, path: str, call: dict[str, Any]) -> str:
    rows = "".join(
        _row(one["name"], f"{one['in']}, {_type(one.get('schema', {}))}", one.get("description", ""))
        for one in call.get("parameters", ())
    )
    for kind, content in call.get("requestBody", {}).get("content", {}).items():
        rows += _row("body", kind, _type(content.get("schema", {})))
    for status, reply in call.get("responses", {}).items():
        rows += _row(status, "reply", escape(reply.get("description", "")))
    words = escape(call.get("description", ""))
    head = f"<b class=verb>{verb.upper()}</b><code>{escape(path)}</code> <span>{words}</span>"
    return f"<details><summary>{head}</summary><div><table>{rows}</table></div></details>"


def _schema(name: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = "".join(
        _row(field, _type(one) + (", needed" if field in needed else ""), one.get("description", ""))
        for field, one in schema.get("properties", {}).items()
    )
    head = f"<code>{escape(name)}</code> <span>{escape(schema.get('description', ''))}</span>"
    return f"<details id='{escape(name)}'><summary>{head}</summary><div><table>{rows}</table></div></details>"


def _row(name: str, kind: str, words: str) -> str:
    return f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{words}</tr>"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with a link to the body it names; already escaped."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for way in ("anyOf", "oneOf", "allOf"):
        if way in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[way]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{escape(str(one))}</code>" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    told = "".join(f" {word} {schema[name]}" for name, word in bounds.items() if name in schema)
    return escape(f"{schema.get('type', 'anything')}{told}")
