"""A rule that raises alerts may decide by any policy: each looks at every frame, and an alert is told for each time
that it speaks, with the frame that shows why."""

from collections.abc import Iterator

import pytest

from onlooker import models
from onlooker.core import registry
from onlooker.core.contracts import VideoModel
from onlooker.core.events import Alert
from onlooker.engine import Engine
from onlooker.respond import Rule
from onlooker.world import make_episode

SETTINGS = {"heads": "heads:names=informative"}


@pytest.fixture(scope="module")
def model() -> Iterator[VideoModel]:
    """It has a word for silence, heads of a frame's end, and a decision net: whatever a policy may need."""
    made = models.load("pocket-notes", device="cpu")
    assert isinstance(made, VideoModel)
    yield made


@pytest.mark.parametrize("policy", sorted(registry.names("response")))
def test_an_alert_may_be_decided_by_any_policy(policy: str, model: VideoModel):
    # The model has the head for news, and none for relevance, which is refused by name.
    made = registry.make("response", SETTINGS.get(policy, policy))
    engine = Engine(model, encoder="full", compressor="dtd", memory="sliding_window:window_tokens=264")
    # What looks at what the rule said has to say something.
    then = "answer" if "said_perplexity" in made.needs else "alert"
    rule = Rule("star", "tell me when a red star appears.", made, 0.0, then=then)
    frames = list(make_episode(4, "test", 14.0).frames(fps=1.0, size=(128, 128)))
    told: list[Alert] = []
    with engine.open() as session:
        watch = session.watch([rule])
        for frame in frames:
            told += watch.look(frame, session.push(frame))
        (status,) = watch.status()
        looks = watch.looks("star")
        events = [event for event in session.events() if isinstance(event, Alert)]
    assert status.skipped == 0 and [look.time_s for look in looks] == [frame.time_s for frame in frames]
    spoke = [look.time_s for look in looks if look.outcome != "silent"]
    # An answer is withheld where it is empty or the same as the one before.
    assert [alert.time_s for alert in told] == (
        spoke if then == "alert" else [a.time_s for a in told if a.time_s in spoke]
    )
    assert [(event.rule, event.time_s) for event in events] == [("star", alert.time_s) for alert in told]
    for alert in told:
        assert alert.evidence is not None and alert.evidence_s <= alert.time_s and alert.then in (then, "delegate")
    assert spoke or policy != "clock"
