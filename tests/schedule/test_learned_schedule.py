"""The value of a look: what it is told from, that the trained model is there, and that it beats plain change."""

import numpy as np
import torch

from onlooker.core.contracts import Waiting
from onlooker.core.frame import Frame
from onlooker.schedule.change_first import ChangeFirst
from onlooker.schedule.learned import FEATURES, Learned, value_model


def shown(level: int, spot: bool = False, noise: int = 0) -> Frame:
    picture = np.full((64, 64, 3), level, np.uint8)
    if noise:
        picture += np.random.default_rng(noise).integers(0, 180, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    if spot:
        picture[8:24, 8:24] = (160, 40, 40)
    return Frame(picture, float(noise))


def waits(stream: int, frame: Frame) -> Waiting:
    return Waiting(stream, 0.0, frame)


def test_a_camera_that_always_changes_gives_way_to_one_in_which_something_comes():
    """Stream 0 flickers all over all day; in stream 1 a thing comes: plain change looks at the first."""
    learned, plain = Learned(), ChangeFirst()
    for method, wanted in ((learned, 1), (plain, 0)):
        state = method.new_state()
        for tick in range(1, 13):
            pair = [waits(0, shown(60, noise=tick)), waits(1, shown(60))]
            method.taken(pair, float(tick), state)
        pair = [waits(0, shown(60, noise=99)), waits(1, shown(60, spot=True))]
        changes = [float((one.frame.cells(8, 96) - state.cells[one.stream]).abs().max()) for one in pair]
        assert changes[0] > changes[1] > 0, "the flicker is louder than the thing"
        assert method.order(pair, 14.0, state)[0] == wanted


def test_features_are_finite_numbers_of_one_size_also_for_another_picture():
    method = Learned()
    state = method.new_state()
    method.taken([waits(0, shown(10))], 0.0, state)
    for frame in (shown(10), shown(200), Frame(np.zeros((30, 90, 3), np.uint8), 1.0)):
        row = method.features(waits(0, frame), 3.0, state)
        assert row.shape == (FEATURES,) and bool(torch.isfinite(row).all())


def test_the_package_holds_its_model():
    model = value_model()
    assert sum(p.numel() for p in model.parameters()) == 225
    still, much = torch.zeros(2, FEATURES), torch.zeros(2, FEATURES)
    still[:, 9] = much[:, 9] = 0.5
    much[:, :7] = 0.7
    assert float(model(much)[0]) > float(model(still)[0])


def test_a_stream_that_has_ended_is_forgotten():
    method = Learned()
    state = method.new_state()
    for tick in range(3):
        method.taken([waits(7, shown(10 * tick))], float(tick), state)
    assert 7 in state.usual
    method.left(7, state)
    assert not state.usual and not state.cells and not state.looked_s
