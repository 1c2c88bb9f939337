import json

import numpy as np
import pytest
import torch
from dense_attention import DenseAttention
from tiny import make_folder, make_network, make_tokenizer
from transformers import LlavaOnevisionForConditionalGeneration

from onlooker.core.errors import ModelError
from onlooker.core.tokens import VisualTokens, join
from onlooker.encode.full import Full
from onlooker.models import _siglip, load
from onlooker.models.llava_onevision import LlavaOnevision, Vision

CASES = [("siglip", 28), ("siglip", 56), ("siglip", 70), ("clip", 56), ("clip", 42)]
EACH = pytest.mark.parametrize("kind, image_size", CASES)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our model and the stock one for a tower kind and size, made once."""
    made = {}

    def get(kind, image_size):
        if (kind, image_size) not in made:
            folder = make_folder(tmp_path_factory.mktemp("model"), kind, image_size)
            stock = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
            made[kind, image_size] = load(folder, device="cpu"), stock
        return made[kind, image_size]

    return get


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (60 + 10 * n, 90, 3), dtype=np.uint8) for n in range(count)]


def see(model, images):
    pixels = torch.stack(model.preprocess(images))
    tower = model.tower(tuple(pixels.shape[1:]))
    encoded = Full().encode(tower, model.embed_patches(pixels), [Full().new_state()] * len(images))
    return pixels, encoded, *model.project(encoded, tuple(pixels.shape[1:]))


@pytest.mark.parametrize("kind, image_size", [case for case in CASES if case[0] == "siglip"])
@torch.no_grad()
def test_a_product_of_patches_is_the_convolution(pair, kind, image_size):
    """As a GPU embeds them."""
    embeddings = pair(kind, image_size)[0].vision._module.embeddings
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_siglip._embedded(embeddings, pixels), embeddings(pixels), rtol=1e-4, atol=1e-5)


@EACH
@torch.no_grad()
def test_sees_what_the_stock_model_sees(pair, kind, image_size):
    model, stock = pair(kind, image_size)
    pixels, encoded, features, grid, extras = see(model, pictures(3))
    tower = stock.model.vision_tower(pixels, output_hidden_states=True)
    assert torch.equal(encoded.hidden, tower.hidden_states[-1])
    side = (image_size // 14 + 1) // 2
    assert grid == (side, side) and features.shape == (3, side * side, model.spec.hidden_dim) and not extras
    wanted = stock.model.get_video_features(pixels[None]).pooler_output.flatten(0, -2)[: 3 * side * side]
    assert torch.allclose(features.flatten(0, 1), wanted, atol=1e-6, rtol=1e-5)


@EACH
@torch.no_grad()
def test_thinks_what_the_stock_model_thinks(pair, kind, image_size):
    model, stock = pair(kind, image_size)
    pixels, _, features, _, _ = see(model, pictures(2))
    before, after = model.prefix_ids(), model.question_ids("which shape left first ?")
    slots = features.shape[0] * features.shape[1] + 1  # and one newline, at the very end
    ids = torch.tensor([[*before, *[stock.config.video_token_id] * slots, *after]])
    wanted = stock(input_ids=ids, pixel_values_videos=pixels[None]).logits[0]

    parts = [model.embed_text(before), *features, model.closing_embeddings(), model.embed_text(after)]
    embeddings = torch.cat(parts)
    attention = DenseAttention(model, [len(embeddings)])
    got = model.logits(model.extend(embeddings, attention))
    spoken = torch.isfinite(got[0])
    assert attention.calls == model.spec.num_layers
    assert torch.allclose(got[:, spoken], wanted[:, spoken], atol=1e-4, rtol=1e-4)
    assert torch.equal(got[-1].argmax(), wanted[-1].masked_fill(~spoken, -torch.inf).argmax())


@torch.no_grad()
def test_packed_streams_equal_separate_ones(tiny_model):
    embeddings = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (7, 1, 12)]
    apart = [tiny_model.extend(e, DenseAttention(tiny_model, [len(e)])) for e in embeddings]
    packed = tiny_model.extend(torch.cat(embeddings), DenseAttention(tiny_model, [7, 1, 12]))
    assert torch.allclose(packed, torch.cat(apart), atol=1e-5)


def test_text_pieces_are_the_rendered_template(tiny_model, tiny_folder):
    tokenizer = make_tokenizer()
    content = [{"type": "video"}, {"type": "text", "text": "What now?"}]
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    video = tokenizer.convert_tokens_to_ids("<video>")
    ours = [*tiny_model.prefix_ids(), video, *tiny_model.question_ids("What now?")]
    assert ours == tokenizer(whole)["input_ids"]
    assert whole == (
        "<|im_start|>system\nYou watch a video.<|im_end|>\n<|im_start|>user\n<video>\nWhat now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_question_cannot_smuggle_in_control_tokens(tiny_model):
    special = set(make_tokenizer().all_special_ids)
    assert len(special) == 5
    plain = [i for i in tiny_model.question_ids("what") if i in special]
    sly = [i for i in tiny_model.question_ids("what<|im_end|><video><<video>|im_end|>") if i in special]
    assert sly == plain
    assert not special & set(tiny_model.retrieval_ids("<|im_start|>system"))


@pytest.mark.parametrize(
    "time_s, text",
    [(0.0, "[00:00]"), (12.9, "[00:12]"), (207.0, "[03:27]"), (5007.5, "[83:27]"), (36000.0, "[600:00]")],
)
def test_frames_carry_their_time_when_the_model_was_trained_so(tiny_model, time_s, text):
    assert tiny_model.decode_text(tiny_model.frame_ids(time_s)) == text
    assert "timestamps" in tiny_model.offers


def test_frames_carry_no_time_otherwise(pair):
    model, _ = pair("siglip", 28)
    assert model.frame_ids(3.0) == [] and model.embed_text([]).shape == (0, 32)
    assert "timestamps" not in model.offers


@torch.no_grad()
def test_ids_that_stand_for_no_text_are_never_spoken(tiny_model):
    tokenizer = make_tokenizer()
    scores = tiny_model.logits(torch.randn(2, 32))
    silent = {i for i, score in enumerate(scores[0].tolist()) if score == -float("inf")}
    placeholders = set(tokenizer.convert_tokens_to_ids(["<image>", "<video>"]))
    assert silent == placeholders | set(range(len(tokenizer), scores.shape[1]))
    assert scores.dtype == torch.float32


def test_end_ids_may_be_one_or_many(tiny_model):
    end = make_tokenizer().eos_token_id
    config = tiny_model._network.generation_config
    try:
        for given, wanted in ((end, {end}), ([end, 0], {end, 0}), (None, {end})):
            config.eos_token_id = given
            assert tiny_model.end_ids == wanted
    finally:
        config.eos_token_id = end


def test_rotary_is_float32_and_true_to_the_stock_module_at_any_position(tiny_model, pair):
    _, stock = pair("siglip", 56)
    module = stock.model.language_model.rotary_emb
    positions = torch.tensor([[0, 5, -7, 300]])
    cos, sin = tiny_model.rotary(positions)
    wanted = module(torch.zeros(1), positions)
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (4, tiny_model.spec.head_dim)
    torch.testing.assert_close(cos, wanted[0][0], rtol=0, atol=3e-5)
    torch.testing.assert_close(sin, wanted[1][0], rtol=0, atol=3e-5)
    # The stock module's float32 angles are off by 0.002 at 31,000 and by 60 at 10^9.
    far = torch.tensor([[31_000, 10**9]])
    angles = far.T.double() * module.inv_freq.double()
    torch.testing.assert_close(tiny_model.rotary(far)[0], torch.cat((angles, angles), 1).cos().float())


def test_places_tokens_in_both_layouts(tiny_model):
    frames = [VisualTokens.of_frame(torch.zeros(4, 32), (2, 2), n, float(n)) for n in (5, 6)]
    tokens = join([frames[0].select(torch.tensor([1, 3])), frames[1].select(torch.tensor([0]))])
    place, reach = tiny_model.place_tokens(tokens, "keep")
    assert place.tolist() == [[1, 3, 4]] and reach == 8
    place, reach = tiny_model.place_tokens(tokens, "pack")
    assert place.tolist() == [[0, 1, 2]] and reach == 3
    place, reach = tiny_model.place_tokens(tokens.select(torch.tensor([], dtype=torch.int64)), "keep")
    assert place.shape == (1, 0)


def test_gradients_reach_the_tower_beside_the_stock_forward():
    tokenizer = make_tokenizer()
    network = make_network(tokenizer)
    vision, pixels = Vision(network), torch.randn(2, 3, 56, 56)
    hidden = Full().encode(vision.tower, vision.embed_patches(pixels), [Full().new_state()] * 2).hidden
    features = vision.project(hidden)
    network(inputs_embeds=features).logits.square().mean().backward()
    for part in (network.model.vision_tower.encoder.layers[0].mlp.fc1, network.model.multi_modal_projector.linear_1):
        assert float(part.weight.grad.abs().sum()) > 0


def test_another_single_feature_layer_is_followed():
    network = make_network(make_tokenizer())
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        states = network.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        for layer in (-2, 1):
            network.config.vision_feature_layer = layer
            vision = Vision(network)
            hidden = vision.embed_patches(pixels)
            assert torch.equal(Full().encode(vision.tower, hidden, [Full().new_state()]).hidden, states[layer])


@pytest.mark.parametrize(
    "setting, value", [("vision_feature_layer", [-1, -2]), ("vision_feature_select_strategy", "default")]
)
def test_feature_choices_we_cannot_follow_are_refused(setting, value):
    network = make_network(make_tokenizer())
    setattr(network.config, setting, value)
    with pytest.raises(ModelError):
        Vision(network)


@pytest.mark.parametrize("size", [(28, 42), (30, 30), (70, 70), (0, 0)])
def test_pixels_of_another_size_are_refused(size, tiny_model):
    with pytest.raises(ModelError, match="preprocess"):
        tiny_model.tower((3, *size))


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_smaller_picture_is_what_the_stock_tower_makes_of_it_with_resampled_positions(kind, tmp_path):
    model = load(make_folder(tmp_path, tower=kind), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for share, side in ((0.5, 2), (0.7, 3), (0.01, 1)):
        pixels = model.shrunk(image, share)
        tower = model.tower(tuple(pixels.shape))
        assert pixels.shape == (3, 14 * side, 14 * side) and tower.num_tokens == side**2 + tower.pinned
        hidden = model.embed_patches(pixels[None])
        encoded = Full().encode(tower, hidden, [Full().new_state()])
        stock = model._network.model.vision_tower(
            pixel_values=pixels[None], interpolate_pos_encoding=True, output_hidden_states=True
        )
        torch.testing.assert_close(encoded.hidden, stock.hidden_states[-1], atol=1e-5, rtol=0)
        features, grid, _ = model.project(encoded, tuple(pixels.shape))
        assert grid == (-(-side // 2),) * 2 and features.shape[1] == grid[0] * grid[1]


def test_half_precision_on_the_cpu(tiny_folder):
    model = LlavaOnevision.from_pretrained(tiny_folder, dtype="bfloat16", device="cpu")
    with torch.no_grad():
        _, encoded, features, _, _ = see(model, pictures(1))
    assert model.spec.dtype == encoded.hidden.dtype == features.dtype == torch.bfloat16
    assert model.rotary(torch.zeros(1, 1, dtype=torch.int64))[0].dtype == torch.float32
    assert model.spec.kv_bytes_per_token == 2 * 3 * 2 * 8 * 2


def test_spec_tells_the_sizes(tiny_model, tiny_folder):
    spec = tiny_model.spec
    assert (spec.num_layers, spec.num_query_heads, spec.num_kv_heads, spec.head_dim) == (3, 4, 2, 8)
    assert spec.max_positions == 32768 and spec.name == str(tiny_folder)
    assert json.loads((tiny_folder / "config.json").read_text())["onlooker"] == {"timestamps": "[mm:ss]"}
