"""Ten minutes of video: positions on three axes equal a fresh computation over what is kept, however far they come."""

import json

import numpy as np
import pytest
import torch
from stock_models import FAMILIES
from tiny import make_qwen_folder

from onlooker.core.frame import Frame
from onlooker.core.tokens import VisualTokens
from onlooker.engine import Engine
from onlooker.engine.packing import Work, run_pass
from onlooker.kvstore.rotation import rotate
from onlooker.models import load

MOST_POSITIONS = 256
MINUTES = 10
SIZES = [(28, 28), (28, 56), (56, 28)]


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family.startswith("qwen")])
def short_sighted(request, tmp_path_factory):
    """A model made for so few positions that ten minutes go far beyond them."""
    folder = make_qwen_folder(tmp_path_factory.mktemp(request.param), request.param, num_layers=1)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = MOST_POSITIONS
    (folder / "config.json").write_text(json.dumps(config))
    return load(folder, device="cpu", pairs=False)


def fresh_positions(model, times, sizes, start):
    """Positions `[3, tokens]` of blocks of whole frames laid one behind the other from `start`, and where they end."""
    parts, reach = [], start
    for time_s, size in zip(times, sizes, strict=True):
        grid = (size[0] // 28, size[1] // 28)
        tokens = VisualTokens.of_frame(torch.zeros(grid[0] * grid[1], 1), grid, 0, time_s)
        before, after = len(model.frame_ids(time_s)), len(model.frame_closing_ids())
        place, extent = model.place_tokens(tokens, "keep")
        for part, more in ((model.place_text(before)[0], before), (place, extent), (model.place_text(after)[0], after)):
            parts.append(part + reach)
            reach += more
    return torch.cat(parts, 1), reach


def watch_long(engine):
    rng = np.random.default_rng(0)
    pictures = {size: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES}
    session, shown = engine.open(), {}
    for second in range(60 * MINUTES):
        size = SIZES[second // 100 % 3]  # the camera turns and zooms now and then
        session.push(Frame(pictures[size], float(second)))
        shown[float(second)] = size
    return session, shown


@torch.no_grad()
def test_sliding_window_goes_on_beyond_the_positions_of_the_model(short_sighted):
    model = short_sighted
    engine = Engine(model, encoder="full", compressor="identity", memory="sliding_window:window_tokens=60")
    session, shown = watch_long(engine)
    window, spans = session.store._window, session.store.spans
    assert max(window.placing.reach) > 5 * MOST_POSITIONS
    means = session.store._signals.export()
    keys, _ = window.tensors()
    prefix = window.prefix.num_tokens
    times = [span.start_s for span in spans[1:]]
    start = window.offsets[spans[1].id][0]
    seen, reach = fresh_positions(model, times, [shown[t] for t in times], start)
    assert reach == max(window.placing.reach)
    places = torch.cat([model.place_text(prefix)[0] + start - prefix, seen], 1)
    # Turned back, the keys of a block have the mean that was taken before they were rotated.
    back, row = rotate(keys, *model.rotary(-places)), 0
    for number, span in enumerate(spans):
        mean = back[:, :, row : row + span.num_tokens].mean(2).flatten(1)
        torch.testing.assert_close(mean, means[:, number], rtol=1e-4, atol=1e-5)
        row += span.num_tokens


@torch.no_grad()
def test_rekv_recalls_at_packed_positions(short_sighted):
    model = short_sighted
    engine = Engine(model, encoder="full", compressor="identity", memory="rekv:topk=4,recent=2,window_tokens=60")
    session, shown = watch_long(engine)
    store, memory, state = session.store, session.memory, session.states["memory"]
    assert len(store.spans) == 1 + 60 * MINUTES, "nothing was forgotten"

    view = store.question(lambda layer, spans, scores: memory.recall(spans, scores, state), scored=True)
    ids = model.retrieval_ids("which shape left first ?")
    run_pass(model, [Work(model.embed_text(ids), view.retrieval(*model.place_text(len(ids))))])
    by_id = {span.id: span for span in store.spans}
    for layer, context in enumerate(view._contexts):
        assert len(context.blocks) == 1 + 4 + 2
        prefix, times = by_id[context.blocks[0]].num_tokens, [by_id[block].start_s for block in context.blocks[1:]]
        assert any(time_s < 60 * (MINUTES - 2) for time_s in times), "the past was recalled"
        seen, reach = fresh_positions(model, times, [shown[t] for t in times], prefix)
        assert max(context.reach) == reach < MOST_POSITIONS
        places = torch.cat([model.place_text(prefix)[0], seen], 1)
        back, row = rotate(context.keys[0], *model.rotary(-places)), 0
        for block in context.blocks:
            count = by_id[block].num_tokens
            mean = back[:, row : row + count].mean(1).flatten()
            signal = store._signals.means[layer, store._signals.rows[block]]
            torch.testing.assert_close(mean, signal, rtol=1e-4, atol=1e-5)
            row += count
    view.close()
