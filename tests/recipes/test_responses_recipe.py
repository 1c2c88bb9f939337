"""The recipe that teaches a frozen model when to speak: its labels, its made-up answers, and what it writes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onlooker.models import _eight_bits
from onlooker.models._decider import DecisionNet, NetDecider, net_of
from onlooker.world import to_torch
from recipes.pocket import responses
from recipes.pocket.model import TINY, Pocket
from recipes.pocket.responses import (
    FRAMES,
    PAIRS,
    PART,
    Settings,
    appearances,
    labels_of,
    made_up_history,
    make_part,
    read,
    request_rows,
    teach,
    windows,
)
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder


@pytest.fixture(scope="module")
def part():
    return make_part(0, "validation")


@pytest.fixture(scope="module")
def bank(part):
    torch.manual_seed(0)
    encoder = Encoder()
    model = Pocket(TINY, encoder, MAX_VOCABULARY, (3, 3))
    with model.eager(), torch.no_grad():
        found = read(model, encoder, "neutral", [part], torch.device("cpu"), torch.float32, 0)
        return model, encoder, found, request_rows(model, encoder)


def test_labels_are_what_the_tables_show(part):
    """By plain loops over things."""
    tables = {name: array for name, array in part.items() if name != "clock"}
    shown, labels = labels_of(to_torch(tables))
    for clip in range(4):
        seen = [
            {
                int(tables["sprite"][clip, at, n]): (
                    int(tables["shape"][clip, at, n]),
                    int(tables["colour_id"][clip, at, n]),
                )
                for n in range(8)
                if tables["visible"][clip, at, n]
                and 0.02 < tables["x"][clip, at, n] < 0.98
                and 0.02 < tables["y"][clip, at, n] < 0.98
            }
            for at in range(FRAMES)
        ]
        for at in range(1, FRAMES):
            came = set(seen[at]) - set(seen[at - 1])
            left = set(seen[at - 1]) - set(seen[at])
            turned = any(seen[at][one] != seen[at - 1][one] for one in set(seen[at]) & set(seen[at - 1]))
            turned |= bool((tables["glyphs"][clip, at] != tables["glyphs"][clip, at - 1]).any())
            assert labels[clip, :, at].tolist() == [bool(came or left or turned), bool(came)]
            pairs = {8 * (shape - 1) + colour - 1 for shape, colour in seen[at].values() if 1 <= shape <= 8 and colour}
            assert {n for n in range(len(PAIRS)) if shown[clip, n, at]} == pairs


def test_an_appearance_is_told_once_and_again_when_it_comes_back():
    shown = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1]], dtype=torch.bool)
    closed, number = appearances(shown)
    assert closed.long().tolist() == [[0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1]] and number[0, -1] == 2
    for seed in range(40):
        react, since = made_up_history(shown, torch.Generator().manual_seed(seed))
        told = [at for at in range(1, 12) if since[0, at] == 1]  # the frame before was answered
        for at in range(12):
            own = [t for t in told if number[0, t - 1] == number[0, at] and shown[0, t - 1] and t <= at]
            assert bool(react[0, at]) == (bool(shown[0, at]) and not own)


def test_a_stream_decides_as_the_training_does(bank):
    """Frame by frame with its own state, as over whole clips at once."""
    _, _, found, rows = bank
    torch.manual_seed(1)
    net = DecisionNet(TINY.dim, width=16, heads=4, inner=8)
    asked = torch.tensor([3, 40])
    pooled = net.pool(found.carriers[:1], rows[0, asked][None, None], found.real[:1])
    logits = net.react(windows(pooled, net.window)[0], rows[0, asked], net.history(torch.full((FRAMES, 2), 7.0)))
    decider = NetDecider(net_of(net.state_dict(), 4))
    states = [decider.new_state(), decider.new_state()]
    for at in range(8):
        carriers = found.carriers[0, at][found.real[0, at]]
        given = decider.decide(carriers, rows[0, asked], [7.0, 7.0], states)
        torch.testing.assert_close(given, logits[at].sigmoid(), rtol=1e-4, atol=1e-5)


def test_it_writes_what_models_load(bank, tmp_path):
    _, _, found, rows = bank
    lines: list[dict] = []
    few = Settings(steps=2, batch=4, requests=3, head_steps=2, seeds=1)
    teach(tmp_path / "pocket_naive", tmp_path / "heads.safetensors", (found, found), rows, few, lines.append)
    weights = _eight_bits.unpack(load_file(tmp_path / "heads.safetensors"))
    assert weights["silence.weight"].shape == weights["arrival.weight"].shape == (1, TINY.dim)
    net_of({name[8:]: t for name, t in weights.items() if name.startswith("decider.")}, 8)
    assert [line.get("twin", line.get("seed")) for line in lines] == [0, "shuffled", "forgetful"] and json.dumps(lines)
    assert found.hidden.shape == (PART, FRAMES, TINY.dim) and np.isfinite(lines[0]["heads"]["silence"])


def test_a_damaged_net_is_named():
    with pytest.raises(ValueError, match="no layer"):
        net_of({**DecisionNet(8, 16, 4).state_dict(), "inner.weight": torch.zeros(5, 17)}, 4)


def test_requests_are_embedded_as_the_server_does(bank):
    model, encoder, _, rows = bank
    ids = encoder.encode("tell me when a red star appears.")
    place = PAIRS.index(("red", "star"))
    torch.testing.assert_close(rows[0, place], model.embed_text(torch.tensor(ids)).mean(0), rtol=0, atol=0)
    assert responses.TEMPLATES["tell_me"][0].startswith("tell me")


def test_a_frame_ends_in_training_where_it_ends_in_the_engine(monkeypatch):
    """The hidden states that heads learn from are those that the engine hands to them."""
    from onlooker import models
    from onlooker.engine import Engine
    from onlooker.world import make_episode, rasterise, render_tables
    from recipes.pocket.evaluate import load_checkpoint

    model = models.load("pocket-naive", device="cpu")
    ends = []
    monkeypatch.setattr("onlooker.engine.engine.listen", lambda model, given: ends.extend(h for _, h in given))
    with Engine(model, encoder="full", compressor="identity", memory="full").open() as session:
        session.wanted.update({"surprise"})
        for frame in make_episode(4, "validation").frames(fps=1.0):
            if frame.time_s < 5:
                session.push(frame)
    folder = responses.Path(models.__file__).parent / "pocket_naive"
    pocket, encoder = load_checkpoint(folder, torch.device("cpu"))
    tables = to_torch(render_tables([make_episode(4, "validation")], np.arange(5.0)[None]))
    with pocket.eager(), torch.no_grad():
        images = rasterise(tables, 128, 128).images
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = pocket.project(pocket.encode(pixels))[None]
        marks = torch.stack([torch.full((5,), encoder.minutes[0]), torch.tensor(encoder.seconds[:5])], dim=-1)[None]
        keep = torch.ones(1, 5, 64, dtype=torch.bool)
        stream = pocket.pack(features, keep, marks, keep[..., 0], pocket.stream_length(5, 64))
        hidden = pocket.watch(stream)[0, responses._ends(stream.frame, 5)[0]]
    torch.testing.assert_close(torch.stack(ends), hidden, rtol=1e-3, atol=1e-3)
