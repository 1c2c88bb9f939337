import numpy as np
import pytest
import torch
from dense_attention import DenseAttention
from stock_models import flat_patches, load_stock
from tiny import make_qwen_folder, make_qwen_network, make_qwen_tokenizer

from onlooker.core.errors import InputError, ModelError
from onlooker.core.tokens import VisualTokens
from onlooker.encode.full import Full
from onlooker.models import load
from onlooker.models._qwen_pixels import FittedPixels

FAMILIES = ["qwen2_5_vl", "qwen3_vl"]
EACH = pytest.mark.parametrize("family", FAMILIES)
SIZES = pytest.mark.parametrize("size", [(56, 56), (28, 28), (112, 112), (84, 140), (28, 196)], ids=str)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our model, which reads single frames, and the stock one of a family, made once (see also `test_qwen_pairs`)."""
    made = {}

    def get(family):
        if family not in made:
            folder = make_qwen_folder(tmp_path_factory.mktemp(family), family)
            made[family] = load(folder, device="cpu", pairs=False), load_stock(folder)
        return made[family]

    return get


def pictures(count, size=(56, 56), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def see(model, pixels):
    shape = tuple(pixels.shape[1:])
    states = [Full().new_state()] * len(pixels)
    encoded = Full().encode(model.tower(shape), model.embed_patches(pixels), states)
    return encoded, *model.project(encoded, shape)


@EACH
@SIZES
@torch.no_grad()
def test_sees_what_the_stock_tower_sees(pair, family, size):
    model, stock = pair(family)
    pixels = torch.stack(model.preprocess(pictures(3, size)))
    assert pixels.shape[-2:] == size
    flat, grids = flat_patches(pixels)
    wanted = stock.model.visual(flat, grid_thw=grids)
    _, features, grid, extras = see(model, pixels)
    assert grid == (size[0] // 28, size[1] // 28)
    torch.testing.assert_close(features.flatten(0, 1), wanted.pooler_output, rtol=1e-4, atol=1e-5)
    if family == "qwen3_vl":
        rows = extras["deepstack"]
        assert rows.shape == (3, grid[0] * grid[1], 2, 32)
        for level, wanted_rows in enumerate(wanted.deepstack_features):
            torch.testing.assert_close(rows[:, :, level].flatten(0, 1), wanted_rows, rtol=1e-4, atol=1e-5)
    else:
        assert not extras


@EACH
@torch.no_grad()
def test_streams_and_sizes_do_not_touch(pair, family):
    model, _ = pair(family)
    pixels = torch.stack(model.preprocess(pictures(4, (84, 140))))
    together = see(model, pixels)
    for number in range(4):
        alone = see(model, pixels[number : number + 1])
        torch.testing.assert_close(alone[1][0], together[1][number], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_windows_gathered_equal_windows_masked(pair):
    """Of all queries, and of some in each stream, with windows of one size and of several."""
    model, _ = pair("qwen2_5_vl")
    for size in ((112, 112), (84, 140), (28, 196)):
        tower = model.tower((3, *size))
        layer, tokens = tower.layers[0], tower.num_tokens
        number = model.vision.windows(size[0] // 14, size[1] // 14).number
        generator = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(3, 2, tokens, 32, generator=generator)
        assert model.vision.has_windows(0)
        assert len(set(number.bincount().tolist())) == {(112, 112): 1, (84, 140): 3, (28, 196): 2}[size]
        turned = [layer._turned(layer._heads(part)).transpose(1, 2) for part in (q, k)]
        mask = number[:, None] == number
        assert mask.sum() < tokens**2
        masked = torch.nn.functional.scaled_dot_product_attention(
            *turned, layer._heads(v).transpose(1, 2), attn_mask=mask, scale=layer._scale
        )
        masked = masked.transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.attend(q, k, v), masked, rtol=1e-5, atol=1e-6)
        some = torch.rand(2, tokens, generator=generator).topk(tokens // 3).indices.sort(1).values
        here = torch.arange(2)[:, None], some
        torch.testing.assert_close(layer.attend(q[here], k, v, some), masked[here], rtol=1e-5, atol=1e-6)
    assert tower.mean_attended < tower.num_tokens


@EACH
@torch.no_grad()
def test_tower_describes_itself(pair, family):
    model, stock = pair(family)
    tower = model.tower((3, 84, 140))
    assert (tower.num_tokens, tower.group, tower.pinned, tower.grid) == (60, 4, 0, (6, 10))
    assert sorted(tower.raster.tolist()) == list(range(60))
    assert tower.raster[:4].tolist() == [0, 1, 10, 11], "four neighbours that become one token lie side by side"
    assert tower.tap_layers == (frozenset({0, 2}) if family == "qwen3_vl" else frozenset())
    assert len(tower.layers) == stock.config.vision_config.depth
    assert model.tower((3, 84, 140)) is tower
    for wrong in ((3, 84, 141), (3, 0, 28)):
        with pytest.raises(ModelError, match="preprocess"):
            model.tower(wrong)


@EACH
@torch.no_grad()
def test_thinks_what_the_stock_model_thinks(pair, family):
    model, stock = pair(family)
    pixels = torch.stack(model.preprocess(pictures(2, (56, 84))))
    _, features, grid, extras = see(model, pixels)
    flat, grids = flat_patches(pixels)
    ids, kinds, parts, places, reach, rows = [], [], [], [], 0, []

    def add(text_ids):
        nonlocal reach
        place, more = model.place_text(len(text_ids))
        ids.extend(text_ids)
        kinds.extend([0] * len(text_ids))
        parts.append(model.embed_text(text_ids))
        places.append(place + reach)
        rows.append(torch.zeros(len(text_ids), 2, 32))
        reach += more

    add(model.prefix_ids())
    for number in range(2):
        add(model.frame_ids(1.5 * number))
        tokens = VisualTokens.of_frame(features[number], grid, number, 1.5 * number)
        place, more = model.place_tokens(tokens, "keep")
        ids.extend([stock.config.video_token_id] * len(tokens))
        kinds.extend([2] * len(tokens))
        parts.append(tokens.features)
        places.append(place + reach)
        rows.append(extras["deepstack"][number] if extras else torch.zeros(len(tokens), 2, 32))
        reach += more
        add(model.frame_closing_ids())
    add(model.question_ids("which shape left first ?"))
    ids, kinds = torch.tensor([ids]), torch.tensor([kinds])

    wanted_places, _ = stock.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=grids.clone())
    assert torch.equal(wanted_places[:, 0], torch.cat(places, 1))
    wanted = stock(input_ids=ids, pixel_values_videos=flat, video_grid_thw=grids, mm_token_type_ids=kinds).logits[0]

    embeddings = torch.cat(parts)
    attention = DenseAttention(model, [len(embeddings)], torch.cat(places, 1))
    got = model.logits(model.extend(embeddings, attention, {"deepstack": torch.cat(rows)} if extras else None))
    spoken = torch.isfinite(got[0])
    torch.testing.assert_close(got[:, spoken], wanted[:, spoken], rtol=1e-4, atol=1e-4)
    assert attention.calls == model.spec.num_layers
    assert model._network.model.rope_deltas is None, "no state is left on the network"


@torch.no_grad()
def test_deepstack_rows_matter_and_reach_their_tokens_only(pair):
    model, _ = pair("qwen3_vl")
    embeddings = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(5, 2, 32)
    plain = model.extend(embeddings, DenseAttention(model, [5]))
    nothing = model.extend(embeddings, DenseAttention(model, [5]), {"deepstack": rows})
    assert torch.equal(plain, nothing)
    rows[3] = 1.0
    some = model.extend(embeddings, DenseAttention(model, [5]), {"deepstack": rows})
    assert torch.equal(some[:3], plain[:3]) and not torch.allclose(some[3], plain[3], atol=1e-2)


@EACH
def test_rotary_is_true_to_the_stock_module(pair, family):
    model, stock = pair(family)
    positions = torch.tensor([[0, 5, 310, 7], [0, 6, 302, 7], [0, 9, 301, 7]])
    cos, sin = model.rotary(positions)
    wanted = stock.model.language_model.rotary_emb(torch.zeros(1), positions[:, None])
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (4, model.spec.head_dim)
    torch.testing.assert_close(cos, wanted[0][0], rtol=0, atol=3e-5)
    torch.testing.assert_close(sin, wanted[1][0], rtol=0, atol=3e-5)


@EACH
def test_places_tokens_in_both_layouts(pair, family):
    model, _ = pair(family)
    assert model.spec.position_axes == 3 and model.spec.layout == "keep"
    tokens = VisualTokens.of_frame(torch.zeros(15, 32), (3, 5), 4, 2.0).select(torch.tensor([6, 8, 14]))
    place, reach = model.place_tokens(tokens, "keep")
    assert place.tolist() == [[0, 0, 0], [1, 1, 2], [1, 3, 4]] and reach == 5
    place, reach = model.place_tokens(tokens, "pack")
    assert place.tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 3]] and reach == 4
    for layout in ("keep", "pack"):
        place, reach = model.place_tokens(tokens.select(torch.tensor([], dtype=torch.int64)), layout)
        assert place.shape == (3, 0) and reach == 0
    place, reach = model.place_text(3)
    assert place.tolist() == [[0, 1, 2]] * 3 and reach == 3


@EACH
def test_what_follows_a_frame_starts_behind_its_longer_side(pair, family):
    """Our rule. For one-frame videos it is that of all library versions; for longer ones they disagree."""
    model, stock = pair(family)
    config = stock.config
    video, start, end = config.video_token_id, config.vision_start_token_id, config.vision_end_token_id
    ids = torch.tensor([[start, *[video] * 6, end]])
    kinds = (ids == video).long() * 2
    wanted, _ = stock.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=torch.tensor([[1, 4, 6]]))
    tokens = VisualTokens.of_frame(torch.zeros(6, 32), (2, 3), 0, 0.0)
    place, reach = model.place_tokens(tokens, "keep")
    assert torch.equal(wanted[:, 0, 1:7] - 1, place)
    assert wanted[:, 0, 7].tolist() == [1 + reach] * 3 == [int(wanted[:, 0, :7].max()) + 1] * 3


@EACH
def test_text_around_frames(pair, family):
    model, stock = pair(family)
    tokenizer, config = make_qwen_tokenizer(), stock.config
    content = [{"type": "video"}, {"type": "text", "text": "What now?"}]
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    time = "<12.3 seconds>" if family == "qwen3_vl" else ""
    marks = f"{time}<|vision_start|><|video_pad|><|vision_end|>"
    wanted = tokenizer(whole.replace("<|vision_start|><|video_pad|><|vision_end|>", marks))["input_ids"]
    frame = [*model.frame_ids(12.34), config.video_token_id, *model.frame_closing_ids()]
    assert [*model.prefix_ids(), *frame, *model.question_ids("What now?")] == wanted
    assert model.closing_embeddings().shape == (0, 32)
    special = set(tokenizer.all_special_ids)
    assert not special & set(model.retrieval_ids("<|vision_start|><|im_end|><|video_pad|>"))
    assert ("timestamps" in model.offers) == (family == "qwen3_vl")
    silent = {i for i, score in enumerate(model.logits(torch.randn(1, 32))[0].tolist()) if score == -float("inf")}
    assert {config.image_token_id, config.video_token_id, config.vision_start_token_id} <= silent


@EACH
def test_gradients_reach_the_tower(family):
    from onlooker.models import qwen2_5_vl, qwen3_vl

    module = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}[family]
    network = make_qwen_network(make_qwen_tokenizer(), family)
    vision, pixels = module.Vision(network), torch.randn(1, 3, 56, 84)
    encoded = Full().encode(vision.tower(4, 6), vision.embed_patches(pixels), [Full().new_state()])
    loss = vision.project(encoded.hidden).square().sum()
    if encoded.taps:
        loss = loss + vision.deepstack(encoded.taps).square().sum()
    loss.backward()
    frozen = [name for name, weight in network.model.visual.named_parameters() if weight.grad is None]
    assert not frozen


def test_half_precision_on_the_cpu(tmp_path):
    for family in FAMILIES:
        model = load(make_qwen_folder(tmp_path / family, family), dtype="bfloat16", device="cpu")
        with torch.no_grad():
            encoded, features, _, extras = see(model, torch.stack(model.preprocess(pictures(1))))
        assert {t.dtype for t in (encoded.hidden, features, *extras.values())} == {torch.bfloat16}
        assert model.rotary(torch.zeros(3, 1, dtype=torch.int64))[0].dtype == torch.float32


# ------------------------------------------------------------------------------------------------ sizes of pictures

FITTED = FittedPixels(size=(0, 0), factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 100)


@pytest.mark.parametrize(
    "size", [(720, 1280), (448, 448), (30, 45), (10, 1500), (1, 1), (56, 56), (2160, 3840), (83, 97), (100, 19000)]
)
def test_frames_are_fitted_as_the_family_fits_images(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    wanted = smart_resize(*size, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 100)
    assert FITTED.fit(*size) == wanted
    assert all(side % 28 == 0 and side for side in wanted)


def test_a_mere_line_is_refused():
    with pytest.raises(InputError, match="long and thin"):
        FITTED.fit(1, 201)


def test_a_video_frame_has_a_ceiling_whatever_the_image_processor_allows(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"min_pixels": 3136, "max_pixels": 12845056, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    pixels = FittedPixels.of_checkpoint(tmp_path, 14, 2)
    rows, cols = pixels.fit(2160, 3840)
    assert 700 <= rows * cols // 28**2 <= 768
    assert pixels.fit(448, 448) == (448, 448)


@pytest.mark.parametrize("broken", ['"resample": 0', '"merge_size": 3', '"min_pixels": null'])
def test_settings_we_cannot_follow_are_refused(tmp_path, broken):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"min_pixels": 3136, "max_pixels": 12845056, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], '
        f"{broken}}}"
    )
    with pytest.raises(ModelError):
        FittedPixels.of_checkpoint(tmp_path, 14, 2)
