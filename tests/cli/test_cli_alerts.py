"""onlooker watch with rules: terminal, JSON, pictures and webhook, on the pocket model and a clip of its world."""

import json
from pathlib import Path

import pytest
from PIL import Image
from webhook_receiver import SECRET, receiver

CLIP = ("watch", "synthetic:1", "--pace", "max", "--device", "cpu")
HEART = "heart: say yes when you see a blue heart.; hold_s=1"


def test_an_alert_is_a_line_and_a_note(run, tmp_path: Path) -> None:
    ran = run(
        *CLIP, "--rule", HEART, "--rule", "never: tell me when a blue star appears.", "--evidence", tmp_path / "e"
    )
    assert ran.code == 0
    (line,) = ran.out.splitlines()
    assert line.startswith("[0:09] ALERT heart: say yes when you see a blue heart. (1") and line.endswith(".jpg")
    assert "rule heart: 1 alert from 24 looks" in ran.err and "rule never: 0 alerts from 24 looks" in ran.err
    (picture,) = (tmp_path / "e").iterdir()
    assert picture.name == "heart-000009.00s.jpg"
    with Image.open(picture) as opened:
        assert opened.format == "JPEG"


def test_alerts_in_json_and_to_a_webhook(run, tmp_path: Path) -> None:
    rules, secret = tmp_path / "rules.json", tmp_path / "secret"
    rules.write_text(json.dumps([{"name": "heart", "prompt": "say yes when you see a blue heart.", "hold_s": 1}]))
    secret.write_text(SECRET + "\n")
    with receiver() as there:
        sent = ("--rules", rules, "--webhook", there.url, "--webhook-secret-file", secret)
        ran = run(*CLIP, *sent, "--json", typed="did a blue heart ever appear?\n")
        assert ran.code == 0
    alert, answer, end = (json.loads(line) for line in ran.out.splitlines())
    assert alert["event"] == "alert" and alert["rule"] == "heart" and alert["time_s"] == 9.0
    assert alert["stream"] == "synthetic:1" and alert["probability"] > 0.9
    assert alert["evidence"] == {"time_s": 8.0, "wall_time_s": None, "file": None}
    assert answer["event"] == "answer" and answer["text"] == "yes"
    assert end["rules"][0]["alerts"] == 1 and end["rules"][0]["looks"] == 24
    assert end["webhook"]["delivered"] == 1
    ((_, _, event),) = there.arrived
    assert there.forged == 0 and event["type"] == "alert" and event["data"]["time_s"] == 9.0
    assert event["data"]["evidence"]["media_type"] == "image/jpeg"


def test_a_prompt_that_is_no_yes_or_no_question_is_remarked_on(run) -> None:
    ran = run("watch", "synthetic:1:4", "--pace", "max", "--device", "cpu", "--rule", "odd: which shape came first?")
    assert ran.code == 0 and "ask it so that the answer is yes or no" in ran.err


def test_alerts_that_nobody_takes_are_warned_about(run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    with receiver(lambda attempt: 404) as there:
        sent = ("--webhook", there.url, "--webhook-secret-file", tmp_path / "secret")
        ran = run(*CLIP, "--rule", HEART, *sent)
    assert ran.code == 0 and "1 alert not delivered: the receiver said 404" in ran.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rule", "heart"), "NAME: PROMPT"),
        (("--rule", "a: x", "--rule", "a: y"), "two rules have one name"),
        (("--rules", "nothing.json"), "the rules cannot be read"),
        (("--evidence", "there"), "no rules to tell of; given: --evidence"),
        (("--webhook", "http://127.0.0.1:1/"), "no rules to tell of; given: --webhook"),
        (("--rule", "a: x", "--webhook", "http://127.0.0.1:1/"), "given: only --webhook"),
        (("--rule", "a: x", "--webhook-secret-file", "s"), "given: only --webhook-secret-file"),
        (("--rule", "a: x", "--webhook", "http://h/", "--webhook-secret-file", "s"), "the secret cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_one_line_before_anything_is_loaded(run, options, words: str) -> None:
    ran = run("watch", "synthetic:1:4", *options, "--model", "/no/such/model")
    assert ran.code == 2 and words in ran.err and len(ran.err.splitlines()) == 1


def test_an_address_that_is_none_is_refused_before_the_model_is_loaded(run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    ran = run(
        "watch", "synthetic:1:4", "--rule", "a: x", "--webhook", "ftp://host/", "--webhook-secret-file",
        tmp_path / "secret", "--model", "/no/such/model",
    )  # fmt: skip
    assert ran.code == 2 and "http(s) address" in ran.err


def test_a_rule_of_another_policy_says_its_words_and_shows_its_scores(run) -> None:
    tell = (
        "--rule",
        "tell: what is there now?; then=answer",
        "--response",
        "sved:quiet_s=3",
        "--note",
        "@3 a dog barks",
    )
    ran = run(*CLIP, *tell, "--scores", "--json", typed="@10 note: the bell rang\n")
    assert ran.code == 0
    lines = [json.loads(line) for line in ran.out.splitlines()]
    looks = [line for line in lines if line["event"] == "look"]
    assert [look["time_s"] for look in looks] == [float(second) for second in range(24)]
    spoke = {look["time_s"] for look in looks if look["outcome"] == "speak"}
    told = [line for line in lines if line["event"] == "alert"]
    assert {line["time_s"] for line in told} <= spoke and all(
        line["text"] and line["then"] == "answer" for line in told
    )
    assert all(look["score"] > look["threshold"] or look["time_s"] == 0 for look in looks if look["outcome"] == "speak")
    noted = [(line["text"], line["time_s"]) for line in lines if line["event"] == "note"]
    assert noted == [("a dog barks", 3.0), ("the bell rang", 10.0)]
    drawn = run(*CLIP, *tell, "--scores")
    assert "[0:00] SAYS tell: " in drawn.out and drawn.out.count("|") == 24 and "NOTED a dog barks" in drawn.out
    assert run(*CLIP, "--note", "soon a dog").code == 2 and run(*CLIP, "--response", "sved").code == 2


def test_thoughts_are_written_while_watching_and_told(run) -> None:
    think = ("--think", "vst:every_s=6,prompt=what is there now?", "--memory", "streaming_vlm:vision_s=6")
    ran = run(*CLIP, *think, "--json", typed="what is there now?\n")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    thoughts = [line for line in lines if line["event"] == "note"]
    assert [line["time_s"] for line in thoughts] == [6.0, 12.0, 18.0] and {line["kind"] for line in thoughts} == {
        "thought"
    }
    assert thoughts[0]["text"].startswith("0-6 s: ")
    (end,) = (line for line in lines if line["event"] == "end")
    assert end["stream"]["thoughts"] == 3 and end["stream"]["thoughts_dropped"] == 0
    assert run(*CLIP, *think).out.count("] THINKS ") == 3
