"""Alerts of `onlooker watch`: rules from options and files, shown in the terminal, kept as pictures, sent on."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onlooker.cli.output import clock, emit, note, plain, warn
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.core.events import Alert, FrameTaken
    from onlooker.core.frame import Frame
    from onlooker.engine import Session
    from onlooker.respond import Rule
    from onlooker.server.webhooks import Webhook

PANEL = "Alerts"
LITTLE_SAID = 0.2
"""When yes and no together are less likely than this, the prompt was no yes-or-no question."""

RuleTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="RULE",
        help="Tell when this is so: 'NAME: PROMPT; threshold=0.7,hold_s=2,cooldown_s=10'. May be given many times.",
        rich_help_panel=PANEL,
    ),
]
Response = Annotated[
    str | None,
    typer.Option(
        "--response",
        metavar="METHOD",
        help="Policy of the rules that name none, such as [bold]sved[/] or [bold]clock:period_s=5[/].",
        rich_help_panel=PANEL,
    ),
]
Scores = Annotated[
    bool,
    typer.Option("--scores", help="Tell of every look its score and threshold.", rich_help_panel=PANEL),
]
RulesFile = Annotated[
    Path | None, typer.Option("--rules", metavar="FILE", help="Rules in a JSON file.", rich_help_panel=PANEL)
]
WebhookUrl = Annotated[
    str | None, typer.Option("--webhook", metavar="URL", help="Send every alert there.", rich_help_panel=PANEL)
]
SecretFile = Annotated[
    Path | None,
    typer.Option("--webhook-secret-file", metavar="FILE", help="Secret that signs them.", rich_help_panel=PANEL),
]
EvidenceFolder = Annotated[
    Path | None,
    typer.Option("--evidence", metavar="FOLDER", help="Keep the picture of every alert there.", rich_help_panel=PANEL),
]


@dataclasses.dataclass(frozen=True)
class AlertOptions:
    """What the options ask for, checked before a model is loaded."""

    rules: "list[Rule]"
    webhook: tuple[str, str] | None
    """(address, secret)."""
    evidence: Path | None
    scores: bool = False
    """Is every look told of?"""

    @classmethod
    def of(
        cls,
        texts: Sequence[str] | None,
        file: Path | None,
        url: str | None,
        secret: Path | None,
        evidence: Path | None,
        response: str | None = None,
        scores: bool = False,
    ) -> "AlertOptions":
        """Raises `InputError` for rules that cannot be read, and options that need others."""
        from onlooker.core import registry
        from onlooker.respond import Rule, check_names, read_rules

        policy = None if response is None else registry.make("response", response)
        read = read_rules(file, policy) if file else []
        rules = check_names([*read, *(Rule.from_text(text, policy) for text in texts or [])])
        named = {"--webhook": url, "--evidence": evidence, "--response": response, "--scores": scores}
        if not rules and (given := next((name for name, value in named.items() if value), None)):
            raise InputError("there are no rules to tell of", given=given, do="add --rule or --rules")
        webhook = receiver_of(url, secret)
        if evidence is not None and evidence.exists() and not evidence.is_dir():
            raise InputError("the evidence goes into a folder", given=str(evidence), do="choose another name")
        return cls(rules, webhook, evidence, scores)

    @contextmanager
    def on(self, session: "Session", stream: str, as_json: bool) -> "Iterator[Alerts]":
        """The rules at work on a session; at the end what still waits is sent. Raises as `Watch` and `Webhook` do."""
        from onlooker.server.webhooks import Webhook

        webhook = Webhook(*self.webhook) if self.webhook else None
        alerts = Alerts(self, session, stream, as_json, webhook)
        try:
            yield alerts
        finally:
            if webhook is not None:
                webhook.close()


def receiver_of(url: str | None, secret_file: Path | None) -> tuple[str, str] | None:
    """(address, secret) of a webhook, if one is wanted. Raises `InputError` unless both are given and good."""
    from onlooker.server.webhooks import check_url, read_secret, signing_key

    if url is None and secret_file is None:
        return None
    if url is None or secret_file is None:
        given = "only --webhook" if url else "only --webhook-secret-file"
        raise InputError("alerts are sent signed: an address and a secret go together", given=given, do="give both")
    secret = read_secret(secret_file)
    signing_key(secret)
    return check_url(url), secret


class Alerts:
    """Rules at work on one session, and what they say."""

    def __init__(
        self, options: AlertOptions, session: "Session", stream: str, as_json: bool, webhook: "Webhook | None"
    ) -> None:
        self._watch = session.watch(options.rules)
        self._stream, self._as_json = stream, as_json
        self._webhook, self._evidence = webhook, options.evidence
        self._scores, self._told = options.scores, dict.fromkeys((rule.name for rule in options.rules), 0)

    def look(self, frame: "Frame", taken: "FrameTaken") -> None:
        """Let the rules look at the frame that the session took in, and tell what they found."""
        alerts = self._watch.look(frame, taken)
        if self._scores:
            self._tell_scores()
        for alert in alerts:
            self._tell(alert)

    def sum_up(self) -> dict[str, Any]:
        """How the rules did, for programs; for people it is said as notes."""
        status = self._watch.status()
        counts = None
        if self._webhook is not None:
            counts = self._webhook.close()
        if not self._as_json:
            for one in status:
                likely = (
                    "yes was never asked for" if one.highest is None else f"yes was at most {one.highest:.2f} likely"
                )
                note(f"rule {one.name}: {_number(one.alerts, 'alert')} from {_number(one.looks, 'look')}, {likely}")
            if counts is not None:
                note(f"webhook: {counts.delivered} delivered, {counts.failed} failed, {counts.dropped} dropped")
        if counts is not None and counts.failed + counts.dropped:
            warn(f"{_number(counts.failed + counts.dropped, 'alert')} not delivered: {counts.last_error}")
        for one in status:
            if one.mass is not None and one.mass < LITTLE_SAID:
                warn(
                    f"rule {one.name}: yes and no were only {one.mass:.0%} of what the model would have said; "
                    "ask it so that the answer is yes or no"
                )
        return {
            "rules": [dataclasses.asdict(one) for one in status],
            "webhook": dataclasses.asdict(counts) if counts is not None else None,
        }

    def _tell_scores(self) -> None:
        """What every rule decided since the last call, and by which score."""
        for one in self._watch.status():
            new, self._told[one.name] = one.looks - self._told[one.name], one.looks
            for look in self._watch.looks(one.name)[-new:] if new else ():
                if self._as_json:
                    emit({"event": "look", "rule": one.name} | dataclasses.asdict(look))
                else:
                    print(f"[{clock(look.time_s)}] {one.name:<16} {bar(look.score, look.threshold)}", flush=True)

    def _tell(self, alert: "Alert") -> None:
        from onlooker.server.webhooks import alert_event

        kept = self._keep(alert)
        if self._webhook is not None:
            self._webhook.send(alert_event(alert, self._stream))
        if self._as_json:
            event = alert_event(alert, self._stream, picture=False)["data"]
            event["evidence"]["file"] = str(kept) if kept else None
            emit({"event": "alert"} | event)
            return
        likely = "" if alert.probability is None else f" ({alert.probability:.0%})"
        where = f", see {kept}" if kept else ""
        word = {"answer": "SAYS", "delegate": "HANDS ON"}.get(alert.then, "ALERT")
        said = plain(alert.prompt if alert.text is None else alert.text)
        print(f"[{clock(alert.time_s)}] {word} {alert.rule}: {said}{likely}{where}", flush=True)

    def _keep(self, alert: "Alert") -> Path | None:
        if self._evidence is None or alert.evidence is None:
            return None
        path = self._evidence / f"{alert.rule}-{alert.time_s:09.2f}s.jpg"
        try:
            self._evidence.mkdir(parents=True, exist_ok=True)
            path.write_bytes(alert.evidence.jpeg())
        except OSError as error:
            warn(f"the picture of an alert cannot be kept: {error}")  # the watching goes on
            return None
        return path


def bar(score: float | None, threshold: float | None, width: int = 40) -> str:
    """A score against its threshold, drawn: `|` is the threshold, at two thirds of the width."""
    if score is None or threshold is None:
        return "(nothing to tell)"
    mark = width * 2 // 3
    filled = min(width, round(mark * score / threshold)) if threshold > 0 else width
    cells = ["#" if n < filled else "." for n in range(width)]
    cells[mark] = "|"
    return f"{''.join(cells)} {score:.3g} of {threshold:.3g}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
