"""A model on a card that is not the first one works as on the first, whatever the thread."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from moving_pictures import make_frames

from onlooker.engine import Engine
from onlooker.engine.computing import on_card
from onlooker.models import load


def watched(device: str, prepared: bool) -> str:
    engine = Engine(load("pocket", device=device), encoder="stc_cacher", compressor="stc_pruner", memory="rekv:topk=4")
    if prepared:
        engine.prepare(most_frames=1, most_tokens=64, picture=(128, 128))
    session = engine.open()
    for frame in make_frames(6):
        session.push(frame)
    return session.ask("what is there now ?").text


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_a_model_on_the_second_card_in_a_new_thread(prepared: bool) -> None:
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(watched, "cuda:1", prepared).result()
    assert second == watched("cuda:0", prepared)
    assert torch.cuda.current_device() == 0


def test_a_cpu_has_no_card_to_make_current() -> None:
    with on_card(torch.device("cpu")):
        assert torch.zeros(1).device.type == "cpu"
