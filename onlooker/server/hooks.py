"""Further receivers of alerts, each for some sources and rules, and with a body of the shape that it understands."""

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onlooker.core.errors import InputError
from onlooker.core.events import Alert
from onlooker.server.webhooks import Counts, Webhook, alert_event

SHAPES = ("standard", "slack", "ntfy")
FIELDS = ("stream", "rule", "prompt", "text", "time_s", "probability", "time")
"""What a template may name, as `$rule`."""


@dataclass(frozen=True)
class Hook:
    """A receiver. Raises `InputError` for a template that names what there is not."""

    name: str
    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    """Signs what is sent; None for receivers that check nothing."""
    body: str = "standard"
    """`standard` (what `--webhook` sends), `slack`, `ntfy`, or a template."""
    sources: tuple[str, ...] = ()
    """Names of the sources whose alerts are sent; empty for all, sessions of clients too."""
    rules: tuple[str, ...] = ()
    """Names of the rules whose alerts are sent; empty for all."""

    def __post_init__(self) -> None:
        if self.body in SHAPES:
            return
        template = string.Template(self.body)
        if not template.is_valid() or (unknown := set(template.get_identifiers()) - set(FIELDS)):
            given = ", ".join(f"${name}" for name in sorted(unknown)) if template.is_valid() else "a stray $ (write $$)"
            raise InputError("a template names what there is not", given=given, do=f"${', $'.join(FIELDS)}")
        if "$" not in self.body:
            raise InputError(
                "there is no body of that name",
                given=self.body[:80],
                do=f"{', '.join(SHAPES)}, or a template with $rule",
            )

    def wants(self, alert: Alert, stream: str) -> bool:
        """Whether an alert is for this receiver."""
        return (not self.sources or stream in self.sources) and (not self.rules or alert.rule in self.rules)

    def shaped(self, event: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
        """The body of an alert's event, and the headers that go with it."""
        if self.body == "standard":
            return json.dumps(event, allow_nan=False).encode(), {}
        data = event["data"]
        words = {name: "" if data.get(name) is None else str(data[name]) for name in FIELDS[:-1]}
        words["time"] = str(event["timestamp"])
        said = words["text"] or words["prompt"]
        if self.body == "slack":
            return json.dumps({"text": f"*{words['stream']}*: {words['rule']}: {said}"}).encode(), {}
        if self.body == "ntfy":
            title = f"{words['stream']}: {words['rule']}".encode("ascii", "replace").decode()
            return said.encode(), {"content-type": "text/plain; charset=utf-8", "title": title, "tags": "eye"}
        # Inside quotes of JSON the values must not end them; a template of plain text gets them as they are.
        is_json = self.body.lstrip().startswith(("{", "["))
        values = {name: json.dumps(value)[1:-1] for name, value in words.items()} if is_json else words
        text = string.Template(self.body).substitute(values)
        return text.encode(), {} if is_json else {"content-type": "text/plain; charset=utf-8"}


class Hooks:
    """All further receivers of a server; `send` may be called from any thread and never waits."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._sent = [(hook, Webhook(hook.url, hook.secret, shape=hook.shaped)) for hook in hooks]

    def send(self, alert: Alert, stream: str) -> None:
        """Queue an alert for every receiver that wants it."""
        wanted = [(hook, sent) for hook, sent in self._sent if hook.wants(alert, stream)]
        if not wanted:
            return
        plain = alert_event(alert, stream, picture=any(hook.body == "standard" for hook, _ in wanted))
        for _, sent in wanted:
            sent.send(plain)

    def counts(self) -> dict[str, Counts]:
        """What became of the alerts, by the name of the receiver."""
        return {hook.name: sent.counts for hook, sent in self._sent}

    def close(self) -> None:
        """Send what waits, for some seconds."""
        for _, sent in self._sent:
            sent.close()
