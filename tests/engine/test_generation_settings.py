"""A checkpoint's generation settings are obeyed as the library's `generate` obeys them, on every family."""

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES, load_stock, offline_inputs
from tiny import make_family_folder

from onlooker.core.errors import InputError
from onlooker.engine import Decoding, Engine
from onlooker.models import load

QUESTION = "which shape left first ? which shape left first ?"
PLAIN = {"encoder": "full", "compressor": "identity", "memory": "full"}

SETTINGS = {
    "nothing": {},
    "a little penalty": {"repetition_penalty": 1.05},
    "much penalty": {"repetition_penalty": 1.5},
    "reward": {"repetition_penalty": 0.7},
    "no pairs twice": {"no_repeat_ngram_size": 2},
    "several ends": {"eos_token_id": [2, *range(40, 140)]},
    "not too soon": {"eos_token_id": [2, *range(40, 140)], "min_new_tokens": 6},
    "words that may not be said": {"suppress_tokens": list(range(150, 300)), "begin_suppress_tokens": [310, 311]},
    "sampling": {"do_sample": True, "temperature": 1.7},
    "the most likely": {"do_sample": True, "temperature": 1.3, "top_k": 5},
    "a nucleus": {"do_sample": True, "top_p": 0.6, "top_k": 0},
    "all of them": {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    "the least likely cut off": {"do_sample": True, "min_p": 0.05},
}
WISHES = {
    "greedy": ({"do_sample": True, "temperature": 0.9, "top_k": 20}, {"temperature": 0.0}, {"do_sample": False}),
    "hotter": ({"do_sample": True, "temperature": 0.9, "top_k": 20}, {"temperature": 2.0}, {"temperature": 2.0}),
    "drawn": ({}, {"temperature": 1.5, "top_p": 0.9}, {"do_sample": True, "temperature": 1.5, "top_p": 0.9}),
    "narrow": ({"do_sample": True}, {"top_k": 3}, {"top_k": 3}),
    "unpunished": ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    folder = make_family_folder(request.param, tmp_path_factory.mktemp(request.param))
    return load(folder, device="cpu", pairs=False), load_stock(folder)


def told(pair, monkeypatch, settings, wishes, arguments, seed) -> tuple[list[int], list[int]]:
    """The tokens of ours and of the library's, by the same settings of the checkpoint."""
    model, stock = pair
    frames = make_frames(3)
    for network in (model._network, stock):
        for name, value in settings.items():
            monkeypatch.setattr(network.generation_config, name, value, raising=False)
    session = Engine(model, **PLAIN).open()
    for frame in frames:
        session.push(frame)
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=12, seed=seed, **wishes))
    while not request.done:
        session._engine.step_requests([request])
    usable = model.logits(torch.zeros(1, model.spec.hidden_dim))[0].isfinite()
    silent = [n for n in range(len(usable)) if not usable[n]]
    inputs = offline_inputs(stock, model, frames, QUESTION)
    suppressed = {"suppress_tokens": sorted({*silent, *settings.get("suppress_tokens", [])})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = stock.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=12,
            **{**suppressed, **arguments},
        )[0, inputs["input_ids"].shape[1] :].tolist()
    until = next((n for n, token in enumerate(made) if token in model.end_ids), len(made))
    return request._ids, made[:until]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_tokens_are_those_of_generate(pair, monkeypatch, settings):
    for seed in range(3 if settings.get("do_sample") else 1):
        ours, stocks = told(pair, monkeypatch, settings, {}, {}, seed)
        assert ours == stocks


@pytest.mark.parametrize(("settings", "wishes", "arguments"), WISHES.values(), ids=WISHES)
def test_what_is_said_comes_before_the_settings(pair, monkeypatch, settings, wishes, arguments):
    ours, stocks = told(pair, monkeypatch, settings, wishes, arguments, 4)
    assert ours == stocks


def test_settings_change_something_at_all(pair, monkeypatch):
    plain = told(pair, monkeypatch, {}, {}, {}, 0)[0]
    for name in ("much penalty", "no pairs twice", "sampling"):
        with monkeypatch.context() as patch:
            assert told(pair, patch, SETTINGS[name], {}, {}, 0)[0] != plain or name == "no pairs twice", name


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": 2.5}, {"max_new_tokens": "3"}, {"max_new_tokens": True},
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": 1000},
        {"top_p": 0}, {"top_p": 1.5}, {"top_p": "x"}, {"top_k": -1}, {"top_k": 1.5},
        {"repetition_penalty": 0}, {"repetition_penalty": float("inf")},
        {"seed": 2**70}, {"seed": -(2**70)}, {"seed": 1.5}, {"seed": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_wishes_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Decoding(**wrong)
