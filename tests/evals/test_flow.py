"""Cutting attention: nothing cut is the model itself, and a cut does what it says, layer by layer."""

import json

import pytest
import torch
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.cli import main
from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine
from onlooker.evals import flow
from onlooker.models import load

QUESTION = "which shape left first ?"


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def clip(count=7, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [
        Frame(torch.randint(0, 256, (56, 84, 3), generator=rng).to(torch.uint8).numpy(), float(number))
        for number in range(count)
    ]


def engine_of(model, memory="last_frames:frames=99"):
    return Engine(model, encoder="full", compressor="identity", memory=memory, passes="plain")


def scores_by_engine(engine, frames):
    with engine.open() as session:
        for frame in frames:
            session.push(frame)
        request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=1))
        seen = None
        while not request.done:
            (seen,) = engine.passes.run([request.pending()])
            request.accept(seen)
        return seen


def same(one, other):
    usable = other.isfinite()
    torch.testing.assert_close(one[usable], other[usable], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nothing_cut_is_what_the_engine_computes(model):
    engine = engine_of(model)
    sample = flow.sample_of(engine, clip(), QUESTION)
    same(flow.scores_of(model, sample, {})[-1], scores_by_engine(engine, clip()))
    ids = flow.greedy(model, sample, most=4)
    with engine.open() as session:
        for frame in clip():
            session.push(frame)
        assert session.ask(QUESTION, max_new_tokens=4).text == model.decode_text(ids).strip()


@torch.no_grad()
def test_without_any_edge_from_the_video_the_answer_does_not_depend_on_it(model):
    every = frozenset(range(model.spec.num_layers))
    one, other = (flow.sample_of(engine_of(model), clip(seed=seed), QUESTION) for seed in (1, 2))
    cut = {"video_question": every, "video_last": every}
    same(flow.scores_of(model, one, cut)[-1], flow.scores_of(model, other, cut)[-1])
    assert not torch.allclose(flow.scores_of(model, one, {}), flow.scores_of(model, other, {}), atol=1e-3)


@torch.no_grad()
def test_without_edges_between_frames_a_frame_does_not_see_the_one_before(model):
    sample = flow.sample_of(engine_of(model), clip(), QUESTION)
    pairs = flow.edges_of(sample, "cross_frame")
    video = sample.group == flow.VIDEO
    assert pairs.any() and not pairs[~video].any() and not pairs[:, ~video].any()
    for number in sample.frame[video].unique():
        own = sample.frame == number
        assert not pairs[own][:, own].any()


@torch.no_grad()
def test_drops_windows_and_controls(model):
    sample = flow.sample_of(engine_of(model), clip(), QUESTION)
    sample = flow.answered(model, sample, flow.greedy(model, sample, most=3) or [5])
    runs = []
    found = flow.drops(model, [sample], ("video_question", "question_last"), 1, lambda: runs.append(1))
    layers = model.spec.num_layers
    assert len(runs) == 2 * layers and all(len(row) == layers and max(row) <= 1 for row in found.values())
    full, right = flow.probability(model, sample, {})
    assert right and 0 < full <= 1
    only = flow.probability(model, sample, {"video_question": frozenset({1})})[0]
    assert found["video_question"][1] == pytest.approx(1 - only / full)
    cut = flow.chosen_cut({"video_question": [0.0, 0.5, -0.1]}, 0.01)
    assert cut == {"video_question": frozenset({0, 2})}
    control = flow.random_cut(cut, layers, seed=3)
    assert len(control["video_question"]) == 2 and flow.random_cut(cut, layers, seed=3) == control
    assert flow.window(0, 3, 6) == {0, 1} and flow.window(3, 2, 6) == {3, 4} and flow.window(5, 4, 6) == {4, 5}


@pytest.mark.slow
def test_the_command_tells_what_it_measured(capsys):
    command = ["bench", "flow", "--questions", "3", "--edges", "video_last", "--model", "pocket", "--json"]
    with pytest.raises(SystemExit) as done:
        main(command)
    assert done.value.code == 0
    out = json.loads(capsys.readouterr().out)
    assert out["bench"] == "flow" and out["rows"][0]["edge"] == "video_last"
    assert len(out["rows"][0]["drop"]) == 6 and len(out["cut"]["random"]) == 5
    assert 0 < out["right"] <= 3


def test_edges_that_there_are_not_are_refused(capsys):
    with pytest.raises(SystemExit) as done:
        main(["bench", "flow", "--edges", "sideways"])
    assert done.value.code == 2
    assert "cross_frame" in capsys.readouterr().err
