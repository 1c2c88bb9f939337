"""The pocket recipe: its forward is the Hugging Face model's, packing is exact, training goes on where it stopped."""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from onlooker.compress import STCPruner, Uniform
from onlooker.core.tokens import VisualTokens
from onlooker.models import _eight_bits
from onlooker.world import corpus
from recipes.pocket import checkpoint
from recipes.pocket.data import NEVER, NOT_ASKED, SMOKE, DataSettings, Feed, join, make_clip, make_part
from recipes.pocket.evaluate import LABEL_SIZES, evaluate
from recipes.pocket.export import adopt, export, write_weights
from recipes.pocket.model import TINY, Pocket, PocketSizes
from recipes.pocket.select import choose_tokens
from recipes.pocket.tokenizer import MAX_VOCABULARY, PREFIX, Encoder, question_text, time_text
from recipes.pocket.train import ARMS, Progress, Trainer, TrainSettings, main

CPU = torch.device("cpu")
DATA = replace(SMOKE, frames_per_step=32, buckets=((8, 1.0),), part_clips=2)


def make_model(seed: int = 0) -> tuple[Pocket, Encoder]:
    torch.manual_seed(seed)
    encoder = Encoder()
    model = Pocket(TINY, encoder, MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
    for name, p in model.named_parameters():  # a head start, so that scores are not flat and biases not zero
        if p.ndim == 1:
            p.data += 0.1 * torch.randn_like(p)
        elif "position" in name:
            p.data.normal_(0, 0.5)
    return model, encoder


def make_trainer(steps: int = 8, **changes) -> Trainer:
    settings = replace(TrainSettings(steps=steps), **changes)
    return Trainer(settings, TINY, CPU, compiled=False)


def run(trainer: Trainer, feed: Feed, steps: int) -> list[float]:
    out = []
    for _, (frames, arrays) in zip(range(steps), feed, strict=False):
        losses = trainer.step(frames, arrays)
        trainer.progress.next_batch = feed.next_batch
        out.append(float(losses.answers if losses.answers is not None else losses.labels))
    return out


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    encoder = Encoder()
    parts = [make_part(number, DATA, encoder)[2] for number in range(2)]
    return join([part for part in parts if part is not None], 4)


def test_tokenizer_round_trip():
    encoder = Encoder()
    for text in (*list(corpus())[:300], "Hello, World! Grüße 你好 [12:5] x05]\n\ttabs", "[99:59]", ""):
        assert encoder.decode(encoder.encode(text)) == text
    assert len(encoder.encode("[07:59]")) == 2
    assert [len(encoder.encode(word)) for word in ("circle", " circle", "yes", "middle", "cyan")] == [1] * 5
    assert time_text(61.9) == "[01:01]"
    whole = PREFIX + time_text(0) + question_text("which shape is red now?") + "star"
    pieces = [PREFIX, time_text(0), question_text("which shape is red now?"), "star"]
    assert encoder.encode(whole) == [i for piece in pieces for i in encoder.encode(piece)]


def test_exported_folder_answers_like_the_recipe(tmp_path):
    model, encoder = make_model()
    frames = 5
    pixels = torch.randn(1, frames, 3, TINY.image, TINY.image)
    clock = torch.tensor([[[encoder.minutes[3], encoder.seconds[7 + f]] for f in range(frames)]])
    question = torch.tensor([[encoder.question("which shape is red now?") + encoder.encode("star")]])
    with torch.no_grad():
        features = model.project(model.encode(pixels[0]))[None]
        keep = torch.ones(1, frames, TINY.frame_tokens, dtype=torch.bool)
        stream = model.pack(features, keep, clock, torch.ones(1, frames, dtype=torch.bool), 256)
        ours = model.logits(model.read(stream, question, torch.tensor([[frames - 1]])).answered)[0, 0]
    export(copy.deepcopy(model), tmp_path, torch.float32)

    network = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(PREFIX).input_ids
    for frame in range(frames):
        ids += clock[0, frame].tolist() + [encoder.video] * TINY.frame_tokens
    ids += [encoder.video, *question[0, 0].tolist()]  # the last placeholder takes the newline embedding
    with torch.no_grad():
        theirs = network(input_ids=torch.tensor([ids]), pixel_values_videos=pixels).logits[0, -ours.shape[0] :]
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    assert network.config.onlooker["timestamps"] == "[mm:ss]"
    assert tokenizer.decode(tokenizer("the red star [00:07]").input_ids) == "the red star [00:07]"


def test_packed_questions_equal_questions_alone():
    model, _ = make_model()
    clips, frames, questions = 2, 6, 3
    features = torch.randn(clips, frames, TINY.frame_tokens, TINY.dim)
    keep = torch.rand(clips, frames, TINY.frame_tokens) < 0.5
    clock = torch.randint(200, 300, (clips, frames, 2))
    shown = torch.ones(clips, frames, dtype=torch.bool)
    ids = torch.randint(0, 600, (clips, questions, 7))
    asked = torch.tensor([[1, 5, 3], [0, 2, 5]])
    with torch.no_grad():
        packed = model.read(model.pack(features, keep, clock, shown, 128), ids, asked).answered
        for clip in range(clips):
            for number in range(questions):
                last = int(asked[clip, number]) + 1
                row = slice(clip, clip + 1)
                alone = model.pack(features[row, :last], keep[row, :last], clock[row, :last], shown[row, :last], 192)
                one = model.read(alone, ids[row, number : number + 1], torch.tensor([[last - 1]])).answered
                torch.testing.assert_close(packed[clip, number], one[0, 0], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("interval", "ratio"), [(4, 0.25), (0, 0.4), (2, 0.15)])
def test_cacher_in_the_loop_equals_the_streaming_one(interval, ratio):
    from onlooker.encode.stc_published import STCPublished
    from onlooker.models.llava_onevision import Vision

    model, _ = make_model()
    pixels = torch.randn(2, 8, 3, TINY.image, TINY.image)
    pixels = pixels[:, :1] + 0.3 * pixels
    vision, cacher = Vision(model.hf), STCPublished(interval=interval or None, recompute_ratio=ratio)
    states = [cacher.new_state() for _ in range(2)]
    with torch.no_grad():
        ours = model.encode_cached(pixels, interval, ratio)
        for frame in range(8):
            hidden = cacher.encode(vision.tower, vision.embed_patches(pixels[:, frame]), states).hidden
            torch.testing.assert_close(ours[:, frame], hidden, atol=2e-4, rtol=0)
            torch.testing.assert_close(model.project(hidden), vision.project(hidden), atol=2e-5, rtol=0)


def test_a_look_under_an_encoder_of_the_library_is_the_tower_under_it():
    from onlooker.encode.full import Full
    from onlooker.encode.stc_cacher import STCCacher
    from recipes.pocket.evaluate import DEFAULT_SETTINGS, Seen

    model, _ = make_model()
    seen = Seen.__new__(Seen)
    seen.model, seen._features, seen.owner = model, {}, torch.empty(0)
    seen.pixels = torch.randn(2, 1, 3, TINY.image, TINY.image) + 0.3 * torch.randn(2, 4, 3, TINY.image, TINY.image)
    with torch.no_grad():
        dense = model.encode(seen.pixels.flatten(0, 1)).unflatten(0, (2, 4))
        torch.testing.assert_close(seen.under(Full()), dense, atol=2e-4, rtol=0)
        ours, published = seen.features("ours"), seen.features("4:0.25")
        torch.testing.assert_close(ours[:, 0], seen.features()[:, 0], atol=2e-4, rtol=0)
        assert (ours - published).abs().max() > 1e-3 and (ours - seen.features()).abs().max() > 1e-3
        torch.testing.assert_close(ours, model.project(seen.under(STCCacher()).flatten(0, 1)).unflatten(0, (2, 4)))
    assert {"cacher=ours", "cacher=ours,stc=19"} <= set(DEFAULT_SETTINGS)


def test_packed_tokens_know_which_visual_token_they_are():
    model, _ = make_model()
    clips, frames, tokens, dim = 2, 4, TINY.frame_tokens, TINY.dim
    features = torch.randn(clips, frames, tokens, dim)
    keep = torch.rand(clips, frames, tokens) < 0.5
    shown = torch.ones(clips, frames, dtype=torch.bool)
    stream = model.pack(features, keep, torch.zeros(clips, frames, 2, dtype=torch.long), shown, 64)
    for clip in range(clips):
        at = stream.visual[clip] >= 0
        assert stream.visual[clip][at].tolist() == keep[clip].flatten().nonzero().flatten().tolist()
        torch.testing.assert_close(stream.embeddings[clip][at], features[clip].flatten(0, 1)[stream.visual[clip][at]])


def test_the_pruner_of_training_chooses_as_the_real_one():
    features = torch.randn(2, 20, 16, 8)
    counts = torch.full((2, 20), 5)
    keep = choose_tokens(features, counts, torch.Generator().manual_seed(0), named=True)
    pruner = STCPruner(keep=5)
    for clip in range(2):
        state = pruner.new_state()
        for frame in range(20):
            tokens = VisualTokens.of_frame(features[clip, frame], (4, 4), frame, float(frame))
            kept = pruner.compress(tokens, state)
            assert kept.slot.tolist() == keep[clip, frame].nonzero().flatten().tolist()


def test_no_method_chooses_the_tokens_of_the_neutral_arm():
    features, counts = torch.randn(40, 3, 16, 8), torch.full((40, 3), 5)
    keep = choose_tokens(features, counts, torch.Generator().manual_seed(0), named=False)
    assert (keep.sum(2) == 5).all()
    evenly = Uniform(keep=5)
    tokens = VisualTokens.of_frame(features[0, 0], (4, 4), 0, 0.0)
    lattice = torch.zeros(16, dtype=torch.bool)
    lattice[evenly.compress(tokens, evenly.new_state()).slot] = True
    spread = (keep == lattice).all(2).all(1)
    assert 10 <= spread.sum() <= 30
    again = choose_tokens(-features, counts, torch.Generator().manual_seed(0), named=False)
    assert torch.equal(keep, again), "what the tokens hold plays no part"


def test_arms_differ_only_in_what_is_dropped_and_reused(arrays):
    """The naive arm keeps everything to the end, all arms learn alike until tokens are dropped."""
    losses = {}
    for arm in ARMS:
        trainer = make_trainer(10, arm=arm, eyes_share=0.0, hide_share=0.0)
        losses[arm] = [float(trainer.step(8, arrays).answers) for _ in range(6)]
    assert losses["naive"][:4] == losses["neutral"][:4] == losses["aware"][:4]
    trainer = make_trainer(10, arm="naive", eyes_share=0.0, hide_share=0.0, drop_from=0.0)
    assert [float(trainer.step(8, arrays).answers) for _ in range(6)] == losses["naive"]
    trainer = make_trainer(10, arm="aware", eyes_share=0.0, hide_share=0.0, drop_from=0.0)
    assert [float(trainer.step(8, arrays).answers) for _ in range(6)] != losses["naive"]


def test_the_share_of_clips_that_the_tower_learns_from_changes_no_answer(arrays):
    """Clips that the tower only looks at are read, and answered, as those it learns from."""
    seen = {}
    for share in (0.25, 1.0):
        trainer = make_trainer(10, arm="naive", eyes_share=0.0, seen_share=share)
        seen[share] = float(trainer.step(8, arrays).answers)
    assert seen[0.25] == pytest.approx(seen[1.0], rel=1e-5)


def test_questions_know_when_their_evidence_began():
    settings, encoder, found = DataSettings(), Encoder(), set()
    for seed in range(60):
        clip = make_clip(seed, 24, encoder, settings)
        for number, record in enumerate(clip.records):
            frames, last = clip.arrays["evidence"][number].tolist(), clip.arrays["asked"][number]
            if record is None:
                assert frames == [NOT_ASKED, NOT_ASKED]
                continue
            answer = encoder.decode([int(i) for i in clip.arrays["targets"][number] if i >= 0])
            if record.task in ("ever", "proactive") and answer == "no":
                assert frames == [NEVER, NEVER]
                found.add("never")
                continue
            assert all(0 <= frame <= last for frame in frames)
            if record.meta["form"] == "first_of_two" and frames[0] != frames[1]:
                first, second = (record.question.index(f" {name}") for name in record.options)
                named = record.options if first < second else record.options[::-1]
                assert answer == named[int(frames[1] < frames[0])].split()[-1]
                found.add("compared")
            if record.answer.startswith("["):
                assert clip.arrays["targets"][number][1] == clip.arrays["clock"][frames[0]][1]
                found.add("told")
    assert found == {"never", "compared", "told"}


@pytest.mark.skipif(sys.platform != "linux", reason="pipes of a chosen size are Linux's")
def test_a_whole_part_fits_into_the_pipe_of_the_workers():
    import fcntl

    feed = Feed(DATA, 1)
    try:
        room = fcntl.fcntl(feed._out._writer.fileno(), fcntl.F_GETPIPE_SZ)
        part = make_part(0, DataSettings(questions=4, part_clips=2), Encoder())[2]
        assert part is not None and 8 * sum(array.nbytes for array in part.values()) < room
        next(iter(feed))
    finally:
        feed.close()


def test_training_begins_with_easier_batches():
    settings = DataSettings()
    easy, later = ([settings.bucket(b) for b in batches] for batches in (range(300), range(2000, 2300)))
    assert np.mean(easy) < 0.75 * np.mean(later)
    assert set(easy) | set(later) <= {frames for frames, _ in settings.buckets + settings.easy_buckets}
    levels = [make_clip(seed, 16, Encoder(), replace(settings, questions=1), easy=True).episode.level
              for seed in range(40)]  # fmt: skip
    assert "L4" not in levels and levels.count("L0") + levels.count("L1") > 15


def test_weights_of_a_training_travel_alone(tmp_path):
    """The file in eight bits is what an export of that moment holds, and a folder can be made around it elsewhere."""
    torch.manual_seed(0)
    model = Pocket(PocketSizes(), Encoder(), MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
    draw = torch.get_rng_state()
    write_weights(model, tmp_path / "naive.safetensors")
    assert torch.equal(draw, torch.get_rng_state()), "the training draws on as if nothing had been written"
    folder = adopt(tmp_path / "naive.safetensors", tmp_path / "folder")
    export(model, tmp_path / "direct", eight_bits=True)
    one, two = (_eight_bits.read(at / _eight_bits.FILE) for at in (folder, tmp_path / "direct"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "direct").iterdir()}


def test_training_lowers_the_loss_on_one_batch(arrays):
    trainer = make_trainer(steps=1000, arm="naive", eyes_share=0.0)
    losses = [float(trainer.step(8, arrays).answers) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("arm", ["naive", "aware"])
def test_resumed_training_goes_on_exactly(tmp_path, arm):
    changes = {"arm": arm, "eyes_share": 0.2, "drop_from": 0.4}
    first = make_trainer(6, **changes)
    begun = run(first, Feed(DATA, 0), 3)
    first.save(tmp_path / arm)  # rounds the moments, for the run that goes on as for the one that comes back
    rest = run(first, Feed(DATA, 0, first_batch=first.progress.next_batch), 3)
    torch.manual_seed(99)
    second = make_trainer(6, **changes)
    second.load(tmp_path / arm)
    again = run(second, Feed(DATA, 0, first_batch=second.progress.next_batch), 3)
    assert rest == again
    assert len(begun) == 3
    with pytest.raises(ValueError, match="checkpoint of"):
        make_trainer(6, arm="neutral").load(tmp_path / arm)


def test_a_training_state_travels_in_small_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 1000)
    state = {"numbers": torch.arange(500), "step": 7}
    checkpoint.save(tmp_path / "naive", state)
    found = checkpoint.pieces(tmp_path / "naive")
    assert len(found) > 3
    assert all(piece.stat().st_size <= 1000 for piece in found)
    loaded = checkpoint.load(tmp_path / "naive", CPU)
    assert loaded["step"] == 7
    assert torch.equal(loaded["numbers"], state["numbers"])
    found[1].unlink()
    assert not checkpoint.exists(tmp_path / "naive")
    with pytest.raises(FileNotFoundError, match="no whole training state"):
        checkpoint.load(tmp_path / "naive", CPU)
    checkpoint.save(tmp_path / "naive", {"numbers": torch.arange(5)})
    assert checkpoint.exists(tmp_path / "naive"), "pieces of another count are gone"


def test_training_ends_at_its_minutes_and_comes_back(tmp_path):
    """What the commands before used of the minutes counts; the rate falls to nothing at the end of either measure."""
    settings = TrainSettings(steps=100, minutes=2.0)
    assert Progress(step=10, seconds=90.0).share(settings) == 0.75
    assert Progress(step=90, seconds=12.0).share(settings) == 0.9
    assert Progress(step=1, seconds=500.0).share(settings) == 1.0
    main(["--arm", "neutral", "--smoke", "--steps", "4", "--out", str(tmp_path), "--workers", "0", "--check-clips", "5",
          "--stop-after", "0"])  # fmt: skip
    assert checkpoint.exists(tmp_path / "neutral")
    main(
        ["--arm", "neutral", "--smoke", "--steps", "4", "--out", str(tmp_path), "--workers", "0", "--check-clips", "5"]
    )
    assert checkpoint.load(tmp_path / "neutral", CPU)["progress"]["step"] == 4
    lines = [json.loads(line) for line in (tmp_path / "neutral.history.jsonl").read_text().splitlines()]
    looks = {line["level"]: line["validation"] for line in lines if "validation" in line}
    assert set(looks) == {"L0", "L2", "L3"}
    assert {"dense", "last=1", "oracle=19"} <= set(looks["L2"])


def test_evaluation_runs_every_setting(arrays):
    from recipes.pocket.data import make_set

    model, encoder = make_model()
    data = make_set("validation", 2, frames=8)
    settings = ("dense", "blind", "keep=2", "stc=2,cacher=4:0.25", "oracle=2", "uniform=2", "last=1", "last=8")
    scores = evaluate(model, encoder, data, settings, CPU, torch.float32, intervals=True)
    assert set(scores) == set(settings)
    assert all(0 <= row["all"] <= 1 for row in scores.values())
    assert scores["last=8"] == scores["dense"], "all frames of these clips are among the last eight"
