"""What is seen and what is said count positions apart: exact against the stock model, in packed passes too."""

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES, load_stock
from tiny import make_family_folder

from onlooker.core.errors import InputError
from onlooker.core.spans import SAID_GAP
from onlooker.engine import Decoding, Engine
from onlooker.models import load

QUESTION = "which shape left first ?"
PLACES = ("behind", "own", "gap", "overlap")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_family_folder(request.param, tmp_path_factory.mktemp(request.param))


def scores_of(engine: Engine, place: str, spied=None):
    """Scores before each of six forced tokens, and what was read and where."""
    session, drawn, ids = engine.open(), [], [5, 17, 9, 30, 12, 8]

    class Forced:
        looks_back = False

        def draw(self, scores, read, said):
            drawn.append(scores)
            return ids[len(said)]

    run = engine.passes.run

    def spying(works):
        for work in works:
            if spied is not None:
                spied.append((work.embeddings, work.segment.places()))
        return run(works)

    engine.passes.run = spying
    for frame in make_frames(5):
        session.push(frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onlooker.engine.request.Sampler", lambda *args: Forced())
        asking = session.submit(QUESTION, decoding=Decoding(max_new_tokens=6, place=place))
        while not asking.done:
            engine.step_requests([asking])
    engine.passes.run = run
    return torch.stack(drawn)


def engine_of(folder, passes="plain", memory="full") -> Engine:
    model = load(folder, device="cpu", pairs=False)
    return Engine(model, encoder="full", compressor="identity", memory=memory, passes=passes)


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
def test_an_answer_is_placed_where_it_says(folder, place):
    """Against the stock language model, which is given the same tokens and the positions written down here."""
    engine, spied = engine_of(folder), []
    scores = scores_of(engine, place, spied)
    prefix = engine.model.prefix_ids()
    lead = engine.model.embed_text(prefix)
    frames, prompt = spied[:5], spied[5]
    said = spied[6:]
    assert len(said) == 5
    end = int(torch.cat([at for _, at in frames], dim=1).max()) + 1
    words = len(prompt[0])
    start = {"behind": end + words, "own": 0, "gap": end + words + SAID_GAP, "overlap": end}[place]
    assert prompt[1][0].tolist() == list(range(end, end + words)), "the question's words belong to what is seen"
    for n, (_, at) in enumerate(said):
        assert at.unique().tolist() == [start + n], "on every axis"
    if engine.model.language_extras:
        return  # DeepStack rows enter the stock model in another way; its positions are checked above
    stock = load_stock(folder)
    tokens = torch.cat([lead, *(embedded for embedded, _ in spied)])
    axes = engine.model.spec.position_axes
    places = torch.cat([torch.arange(len(prefix)).expand(axes, -1), *(at for _, at in spied)], dim=1)
    ids = places if axes == 1 else places[:, None]
    given = {"inputs_embeds": tokens[None], "position_ids": ids, "use_cache": False}
    # With a mask, places that begin anew are not taken for another sequence.
    hidden = stock.model.language_model(**given, attention_mask=torch.ones(1, len(tokens))).last_hidden_state
    wanted = stock.lm_head(hidden[0, -6:]).float()
    seen = torch.isfinite(scores)
    torch.testing.assert_close(scores[seen], wanted[seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory", ["full", "sliding_window:window_tokens=30", "rekv:topk=3,recent=2,window_tokens=40"])
def test_packed_passes_place_it_alike(folder, memory):
    plain, packed = engine_of(folder, memory=memory), engine_of(folder, "packed", memory)
    found = {}
    for place in PLACES:
        found[place] = scores_of(plain, place)
        torch.testing.assert_close(scores_of(packed, place), found[place], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found[place][0], found["behind"][0], rtol=1e-4, atol=1e-4)
    assert all(not torch.allclose(found["behind"][2:], found[place][2:], atol=1e-3) for place in PLACES[1:])


def test_notes_of_gpe_are_answers_that_count_from_zero(folder):
    model = load(folder, device="cpu")
    engine = Engine(model, encoder="full", compressor="identity", memory="full", think="gpe:every_s=3,longest=5")
    session, alone = engine.open(), Engine(model, encoder="full", compressor="identity", memory="full").open()
    for frame in make_frames(8):
        session.push(frame)
        alone.push(frame)
        if len(session.notes()) == 1 and alone.totals.answers == 0:
            prompt = f"{engine.serving.thinker.prompt} ({session.notes()[0].text.split(' s:')[0]} s)"
            said = alone.submit(prompt, decoding=Decoding(5, place="own"))
            while not said.done:
                alone._engine.step_requests([said])
            assert session.notes()[0].text.endswith(said.answer().text)
    assert alone.totals.answers == 1


def test_another_place_is_refused():
    with pytest.raises(InputError, match="no such place"):
        Decoding(place="nowhere")
