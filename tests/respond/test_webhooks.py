"""Alerts over HTTP to a real receiver: signed, retried, bounded, counted."""

import base64
import socket
import threading
import time

import numpy as np
import pytest
from webhook_receiver import SECRET, receiver

from onlooker.core.errors import InputError
from onlooker.core.events import Alert
from onlooker.core.frame import Frame
from onlooker.server.webhooks import Delivery, Webhook, alert_event, read_secret, sign

QUICK = Delivery(first_wait_s=0.01, longest_wait_s=0.05, timeout_s=5.0)


def test_an_event_arrives_once_and_signed() -> None:
    with receiver() as there:
        with Webhook(there.url, SECRET, QUICK) as webhook:
            assert all(webhook.send({"number": number}) for number in range(5))
        assert [event for _, _, event in there.arrived] == [{"number": number} for number in range(5)]
        assert there.forged == 0 and len({number for number, _, _ in there.arrived}) == 5
        assert all(abs(stamp - time.time()) < 60 for _, stamp, _ in there.arrived)
        assert webhook.counts.delivered == 5 and webhook.counts.last_error is None


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's reference libraries."""
    secret, number, stamp = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"
    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert sign(key, number, stamp, b'{"test": 2432232314}') == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    with receiver(key=key) as there:
        with Webhook(there.url, secret, QUICK) as webhook:
            webhook.send({})
        assert there.forged == 0 and webhook.counts.delivered == 1


def test_a_failure_is_tried_again_with_the_same_id() -> None:
    with receiver(lambda attempt: 200 if attempt > 3 else (503, 429, 408)[attempt - 1]) as there:
        with Webhook(there.url, SECRET, QUICK) as webhook:
            webhook.send({"x": 1})
        assert len(there.arrived) == 4 and len({number for number, _, _ in there.arrived}) == 1
        assert there.forged == 0
        counts = webhook.counts
        assert (counts.delivered, counts.retried, counts.failed) == (1, 3, 0)
        assert counts.last_error == "the receiver said 408"


def test_trying_ends_and_the_next_event_has_its_turn() -> None:
    with receiver(lambda attempt: 500 if attempt <= 3 else 204) as there:
        with Webhook(there.url, SECRET, Delivery(attempts=3, first_wait_s=0.01)) as webhook:
            webhook.send({"x": 1})
            webhook.send({"x": 2})
        assert [event["x"] for _, _, event in there.arrived] == [1, 1, 1, 2]
        assert (webhook.counts.delivered, webhook.counts.failed) == (1, 1)


@pytest.mark.parametrize("answer", [400, 401, 404, 410, (302, {"location": "http://127.0.0.1:1/elsewhere"})])
def test_a_refusal_is_final_and_redirects_are_refusals(answer) -> None:
    with receiver(lambda attempt: answer) as there:
        with Webhook(there.url, SECRET, QUICK) as webhook:
            webhook.send({})
        assert len(there.arrived) == 1
        assert (webhook.counts.failed, webhook.counts.retried) == (1, 0)


def test_the_receiver_may_ask_for_a_longer_wait() -> None:
    with receiver(lambda attempt: (503, {"retry-after": "1"}) if attempt == 1 else 200) as there:
        began = time.monotonic()
        with Webhook(there.url, SECRET, Delivery(first_wait_s=0.01)) as webhook:
            webhook.send({})
        assert time.monotonic() - began >= 1.0 and webhook.counts.delivered == 1


def test_nobody_there_is_counted() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with Webhook(f"http://127.0.0.1:{unused.getsockname()[1]}", SECRET, Delivery(2, 0.01)) as webhook:
            webhook.send({})
    assert (webhook.counts.failed, webhook.counts.retried) == (1, 1)
    assert "ConnectionRefusedError" in (webhook.counts.last_error or "")


def test_the_queue_is_bounded_and_what_is_dropped_is_counted() -> None:
    gate = threading.Event()

    def slow(attempt: int) -> int:
        gate.wait(200)
        return 200

    with receiver(slow) as there:
        webhook = Webhook(there.url, SECRET, Delivery(waiting=3))
        taken = [webhook.send({"n": number}) for number in range(20)]
        gate.set()
        counts = webhook.close()
        # Three wait, and the thread may have had one in hand.
        assert taken.count(True) in (3, 4) and counts.dropped == taken.count(False)
        assert counts.delivered == taken.count(True) == len(there.arrived)


def test_closing_waits_no_longer_than_asked_and_counts_the_rest() -> None:
    with receiver(lambda attempt: 503) as there:
        webhook = Webhook(there.url, SECRET, Delivery(first_wait_s=400, longest_wait_s=400))
        for number in range(4):
            webhook.send({"n": number})
        assert there.came.wait(200)
        began = time.monotonic()
        counts = webhook.close(within_s=0.2)
        assert time.monotonic() - began < 200
        assert counts.delivered == 0 and counts.dropped + counts.failed == 4
        assert webhook.close() == counts
        with pytest.raises(InputError, match="was closed"):
            webhook.send({})
    assert not [thread for thread in threading.enumerate() if thread.name == "onlooker-webhook"]


def test_an_address_can_be_refused_at_every_attempt() -> None:
    asked = []

    def check(url: str) -> None:
        asked.append(url)
        if len(asked) == 2:
            raise InputError("the address is private")

    with receiver() as there:
        with Webhook(there.url, SECRET, QUICK, check) as webhook:
            webhook.send({"n": 1})
            webhook.send({"n": 2})
        assert asked == [there.url] * 2 and len(there.arrived) == 1
        assert (webhook.counts.delivered, webhook.counts.failed) == (1, 1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/x",
        "file:///etc/passwd",
        "http://",
        "//host/x",
        "http://host:99999/",
        "http://ho st/",
        "http://h/ä",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="http"):
        Webhook(url, SECRET)


def test_credentials_in_the_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as refused:
        Webhook("https://me:hunter2@host/x", SECRET)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "short", "whsec_!!!!", "whsec_c2hvcnQ="])
def test_weak_secrets_are_refused(secret: str) -> None:
    with pytest.raises(InputError, match="secret"):
        Webhook("http://127.0.0.1:1/", secret)


def test_a_secret_is_read_from_a_file(tmp_path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    assert read_secret(tmp_path / "secret") == SECRET
    with pytest.raises(InputError, match="cannot be read"):
        read_secret(tmp_path / "none")


def test_an_alert_carries_its_picture() -> None:
    image = np.zeros((1500, 3000, 3), np.uint8)
    event = alert_event(Alert("star", "tell me", 12.5, 0.9, 10.5, Frame(image, 10.5, 1.7e9)), "door")
    assert event["type"] == "alert" and event["data"]["rule"] == "star" and event["data"]["stream"] == "door"
    assert event["data"]["time_s"] == 12.5
    assert (event["data"]["evidence"]["time_s"], event["data"]["evidence"]["wall_time_s"]) == (10.5, 1.7e9)
    picture = base64.b64decode(event["data"]["evidence"]["data"])
    from io import BytesIO

    from PIL import Image

    assert Image.open(BytesIO(picture)).size == (1280, 640)
    bare = alert_event(Alert("star", "tell me", 12.5, None, 12.5), "door")
    assert bare["data"]["evidence"] == {"time_s": 12.5, "wall_time_s": None} and bare["data"]["probability"] is None
