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


@pytest.fixture(scope="module")
def model() -> Iterator[VideoModel]:
    """It has a word for silence, heads of a frame's end, and a decision net: whatever a policy may need."""
    made = models.load("pocket-notes", device="cpu")
    assert isinstance(made, VideoModel)
    yield made


@pytest.mark.parametrize("policy", sorted(registry.names("response")))
def test_an_alert_may_be_decided_by_any_policy(policy: str, model: VideoModel):
    made = registry.make("response", policy)
    engine = Engine(model, encoder="full", compressor="dtd", memory="last_frames:frames=4")
    rule = Rule("star", "tell me when a red star appears.", made, 0.0)
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
    assert [alert.time_s for alert in told] == [look.time_s for look in looks if look.outcome != "silent"]
    assert [(event.rule, event.time_s) for event in events] == [("star", alert.time_s) for alert in told]
    for alert in told:
        assert alert.evidence is not None and alert.evidence_s <= alert.time_s and alert.then in ("alert", "delegate")
    if "speak_probability" not in made.needs and policy == "clock":
        assert told
