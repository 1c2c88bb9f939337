"""Every method the registry finds runs on every family, through frames of changing size, and streams stay apart."""

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core import registry
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.models import load

QUESTION = "what is happening in the video ?"
PLAIN = {"gate": "all", "encoder": "full", "compressor": "identity", "memory": "full"}
CASES = [(kind, name) for kind in PLAIN for name in registry.names(kind)]


@pytest.fixture(scope="module", params=FAMILIES)
def family_model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def clip(seed):
    sizes = [56, 56, 112, 112, 84, 56]
    return [
        Frame(make_frames(1, seed=seed + number, size=size)[0].image, float(number))
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_method_runs_and_streams_stay_apart(family_model, kind, name):
    engine = Engine(family_model, **(PLAIN | {kind: name}))
    together = [engine.open(), engine.open()]
    clips = [clip(0), clip(10)]
    for pair in zip(*clips, strict=True):
        engine.step(list(zip(together, pair, strict=True)))
    answers = [session.ask(QUESTION, max_new_tokens=4) for session in together]
    alone = engine.open()
    for frame in clips[1]:
        alone.push(frame)
    assert alone.ask(QUESTION, max_new_tokens=4).text == answers[1].text
    assert together[0].stats().tokens_kept <= together[0].stats().tokens_seen
    assert torch.isfinite(torch.tensor([c.share for c in answers[0].citations])).all()
