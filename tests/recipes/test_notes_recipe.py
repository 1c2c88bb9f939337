"""The recipe that teaches notes: what it tells of a clip, how units are read, and that it goes on where it was."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onlooker.models import _adapter
from onlooker.models._signals import FILE as HEADS_FILE
from onlooker.world import render_tables
from onlooker.world.lexicon import COLOUR_NAMES, SHAPES
from recipes.pocket.model import TINY
from recipes.pocket.notes import Settings, Trainer, train
from recipes.pocket.notes_feed import Feed
from recipes.pocket.notes_look import happenings, look, look_at_texts, make_checks, score
from recipes.pocket.notes_model import Adapted, begin_with, frame_ends, write
from recipes.pocket.tokenizer import Encoder
from recipes.pocket.told import KINDS, NEWLINE, ToldSettings, counts, draw_script, make_clip, notes_of
from recipes.pocket.told_texts import make_row

TOLD = ToldSettings(frames=8, tokens=320)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture(scope="module")
def trainer(encoder: Encoder) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Adapted(TINY, encoder, 4), Settings(clips=4, rank=4, seconds=60.0), torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.copy(next(iter(Feed(TOLD, trainer.settings, 0))))


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_is_what_the_tables_begin_to_show(seed: int):
    """By plain sets over frames: a thing comes where it is seen and was not for three frames."""
    import random

    script = draw_script(seed, TOLD, random.Random(seed))
    tables = {name: table[0] for name, table in render_tables([script.episode], script.times[None]).items()}
    seen = []
    for frame in range(len(script.times)):
        there = set()
        for slot in range(tables["x"].shape[1]):
            shape, colour = int(tables["shape"][frame, slot]), int(tables["colour_id"][frame, slot])
            x, y = float(tables["x"][frame, slot]), float(tables["y"][frame, slot])
            inside = 0.02 < x < 0.98 and 0.02 < y < 0.98 and bool(tables["visible"][frame, slot])
            if inside and 1 <= shape <= 8 and colour:
                sprite = int(tables["sprite"][frame, slot])
                there.add((sprite, f"{COLOUR_NAMES[colour - 1]} {SHAPES[shape - 1]}"))
        seen.append(there)
    came = []
    for frame, there in enumerate(seen):
        lately = {sprite for before in seen[max(0, frame - 3) : frame] for sprite, _ in before}
        came += [(frame, f"{look} came") for sprite, look in there if sprite not in lately]
    told = [(one.frame, one.what) for one in script.happenings if one.what.endswith("came")]
    assert sorted(told) == sorted(came) and told


def test_a_note_is_cut_into_what_it_tells():
    assert happenings("[00:02] red star came [00:04] red star changed blue") == [
        "[00:02] red star came", "[00:04] red star changed blue",
    ]  # fmt: skip
    assert happenings("red star came blue ring came") == ["red star came", "blue ring came"]
    assert happenings("") == []
    assert happenings("red star came\nblue ring left\nword cup") == ["red star came", "blue ring left", "word cup"]
    assert happenings("[00:02] red star came\n[00:02] blue ring left") == [
        "[00:02] red star came",
        "[00:02] blue ring left",
    ]


def test_a_unit_is_read_as_it_would_be_alone(trainer: Trainer, batch: dict[str, torch.Tensor]):
    """Units of a clip share its frames, and nothing of one reaches another."""
    model = trainer.model
    with model.eager(), torch.no_grad():
        stream, _ = trainer.watch(batch, spoilt=False)
        together, _ = model.read_units(stream, batch, TOLD.frames)
        number = 2
        mine = batch["unit"][0] == number
        alone = {name: t.clone() for name, t in batch.items()}
        alone["ids"][0][~mine] = 7
        apart, _ = model.read_units(stream, alone, TOLD.frames)
    assert mine.sum() > 4
    assert torch.allclose(together[0][mine], apart[0][mine], atol=1e-5)


def test_a_unit_sees_no_frame_after_the_one_it_is_about(trainer: Trainer, encoder: Encoder):
    _, arrays, units = make_clip(3, encoder, TOLD)
    script = make_clip(3, encoder, TOLD)[0]
    assert all(script.start <= unit.asked < script.start + TOLD.frames for unit in units)
    assert all(unit.ids.count(NEWLINE) == 1 and unit.ids[-1] == encoder.end for unit in units)
    assert (arrays["target"] >= 0).sum() == sum(len(unit.ids) - unit.first for unit in units)


def test_frames_end_with_their_last_visual_token(trainer: Trainer, batch: dict[str, torch.Tensor]):
    with trainer.model.eager(), torch.no_grad():
        stream, _ = trainer.watch(batch, spoilt=False)
    ends = frame_ends(stream, TOLD.frames)
    for clip in range(2):
        for frame in range(TOLD.frames):
            mine = [n for n in range(stream.frame.shape[1]) if stream.frame[clip, n] == frame]
            assert ends[clip, frame] == max(n for n in mine if stream.visual[clip, n] >= 0)


def test_an_adapter_that_learnt_nothing_changes_nothing(trainer: Trainer, batch: dict[str, torch.Tensor]):
    model = trainer.model
    with model.eager(), torch.no_grad():
        stream, _ = trainer.watch(batch, spoilt=False)
        with_it, _ = model.read_units(stream, batch, TOLD.frames)
        model.active = False
        without, _ = model.read_units(stream, batch, TOLD.frames)
        model.active = True
    assert torch.equal(with_it, without)


def test_the_twin_has_only_questions_about_frames(encoder: Encoder):
    for seed in range(4):
        _, arrays, units = make_clip(seed, encoder, replace(TOLD, plain=True))
        assert {unit.kind for unit in units} <= {"question"}
        assert set(arrays["kind"][arrays["kind"] >= 0]) <= {KINDS.index("question")}


def test_a_training_goes_on_where_it_was_and_writes_its_adapter(encoder: Encoder, tmp_path):
    def made() -> Trainer:
        torch.manual_seed(1)
        settings = Settings(clips=2, rows=2, reading_share=0.3, rank=2, seconds=1e9, steps=3)
        return Trainer(Adapted(TINY, encoder, 2), settings, torch.device("cpu"))

    lines: list[dict] = []
    first = made()
    feed, texts = (Feed(TOLD, first.settings, 0, texts=some) for some in (False, True))
    with first.model.eager():
        train(first, feed, texts, tmp_path / "state", lines.append)
    assert first.steps == 3
    assert feed.made == 2 and texts.made == 3  # the first step of three reads texts alone
    second = made()
    second.load(tmp_path / "state")
    assert second.steps == first.steps and second.seconds == first.seconds
    for name, p in second.model.learnt.items():
        assert torch.equal(p, first.model.learnt[name])
    with pytest.raises(ValueError, match="not of control"):
        Trainer(second.model, replace(second.settings, arm="control"), torch.device("cpu")).load(tmp_path / "state")
    write(first.model, tmp_path / "adapter")
    third = made()
    begin_with(third.model, tmp_path / "adapter")
    for name, p in third.model.learnt.items():
        assert torch.allclose(p, first.model.learnt[name], atol=0.02), name
    with pytest.raises(ValueError, match="another rank"):
        begin_with(Adapted(TINY, encoder, 3), tmp_path / "adapter")
    packed = load_file(tmp_path / "adapter" / _adapter.FILE)
    plain = {f"language_model.model.{name}": p for name, p in first.model.hf.model.language_model.named_parameters()}
    merged = _adapter.added(plain, packed)
    for place in ("q", "k", "v"):
        weight, name = getattr(first.model.text_weights()[0], place), f"layers.0.self_attn.{place}_proj.weight"
        name = f"language_model.model.{name}"
        assert torch.allclose(merged[name], weight, atol=2e-3)
    with pytest.raises(ValueError, match="another model"):
        _adapter.added({}, packed)


def test_a_look_tells_recall_and_what_the_heads_are_worth(trainer: Trainer, encoder: Encoder):
    clips = make_checks(2, TOLD, 0)
    row = look(trainer, encoder, clips)
    assert {"note_recall", "note_precision", "live_recall", "heads"} <= set(row)
    assert json.loads(json.dumps(row))["heads"]["chance_arrival"] >= 0


def test_a_sum_counts_what_came():
    from recipes.pocket.told import Happening

    found = [Happening(n, n, what) for n, what in enumerate(("red star came", "blue star came", "red ring came",
                                                            "red star left"))]  # fmt: skip
    assert counts(found) == "2 stars 1 ring"
    assert np.isscalar(found[0].frame)


def test_an_adopted_folder_loads_as_its_neighbour_with_the_adapter_added(tmp_path):
    """With an adapter that learnt nothing it is the neighbour, bit for bit; with another its logits differ."""
    import shutil

    from onlooker.models import load
    from recipes.pocket.model import PocketSizes
    from recipes.pocket.notes_card import BASE, adopt, card

    shutil.copytree(BASE, tmp_path / BASE.name)
    torch.manual_seed(0)
    model = Adapted(PocketSizes(), Encoder(), 2)
    write(model, tmp_path / "made")
    files = (tmp_path / "made" / _adapter.FILE, tmp_path / "made" / HEADS_FILE)
    adopt(tmp_path / BASE.name, tmp_path / "taught", *files)
    same, plain = load(tmp_path / "taught", device="cpu"), load(tmp_path / BASE.name, device="cpu")
    assert same.head_names == ("informative", "arrival") and same.decider is not None and same.silence_ids
    wanted = dict(plain._network.named_parameters())
    for name, p in same._network.named_parameters():
        assert torch.equal(p, wanted[name]), name
    with torch.no_grad():
        for up in model.up_maps:
            up.normal_()
    write(model, tmp_path / "made")
    adopt(tmp_path / BASE.name, tmp_path / "taught", *files)
    other = dict(load(tmp_path / "taught", device="cpu")._network.named_parameters())
    changed = {name for name, p in other.items() if not torch.equal(p, wanted[name])}
    assert len(changed) == 42 and all("language_model.layers" in name for name in changed)
    checks = {"notes, seed 0": {"note": 0.5, "heads": dict.fromkeys(("informative", "arrival", "silence"), 0.5)}}
    checks["notes, seed 0"]["heads"] |= {"chance_informative": 0.5, "chance_arrival": 0.3}
    assert "| notes of a second, wholly right | 0.50 |" in card(checks, {"notes, seed 0": 9}, 1000, "python")


def test_a_card_is_made_of_the_last_check_and_refused_without_one_before_anything_is_written(tmp_path):
    from onlooker.core.errors import InputError
    from recipes.pocket import notes_card

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"step": 5, "checked": {"note": 0.1}}\n{"step": 9, "checked": {"note": 0.5}}\n{"step": 12}\n')
    assert notes_card.last_checked(rows) == {"step": 9, "checked": {"note": 0.5}}
    rows.write_text('{"set_up_s": 7.5, "from_step": 0}\n{"step": 1228, "note": 0.099}\n')
    given = f"--adapter none --heads none --rows {rows} --to {tmp_path / 'to'} --command x".split()
    with pytest.raises(InputError, match=r"rows\.jsonl, cut after 1228 steps"):
        notes_card.main(given)
    assert not (tmp_path / "to").exists()


def test_questions_long_after_their_notes_are_counted_apart(encoder: Encoder):
    """A check of a training has them in lines of their own, beside all of their task."""
    told = replace(TOLD, tokens=1024)
    clips = [make_clip(seed, encoder, told) for seed in range(40)]
    said = [[encoder.decode(unit.ids[unit.first :]) for unit in units] for _, _, units in clips]
    row = score(clips, said, encoder)
    late = {name: number for name, number in row["units"].items() if name.endswith(" after a pause")}
    assert late and all(row[name] == 1.0 for name in late)
    assert all(number <= row["units"][name.removesuffix(" after a pause")] for name, number in late.items())


def test_a_text_is_read_as_if_it_stood_alone(trainer: Trainer, encoder: Encoder):
    """Units of a row do not see each other, and what they ask is in their own notes."""
    arrays, units = make_row(3, encoder, TOLD)
    assert len(units) > 3 and {unit.kind for unit in units} == {"recalled"}
    with torch.no_grad():
        together = trainer.read_texts(trainer.copy({name: array[None] for name, array in arrays.items()}))[0]
    at = 0
    for unit in units[:4]:
        alone = {name: np.zeros_like(array)[None] for name, array in arrays.items()}
        alone["unit"][:] = -1
        length = len(unit.ids)
        alone["ids"][0, :length], alone["place"][0, :length], alone["unit"][0, :length] = unit.ids, range(length), 0
        with torch.no_grad():
            wanted = trainer.read_texts(trainer.copy(alone))[0, :length]
        assert torch.allclose(together[at : at + length], wanted, atol=1e-4)
        at += length


@pytest.mark.parametrize("seed", range(3))
def test_times_that_texts_are_asked_for_stand_in_them(seed: int, encoder: Encoder):
    _, units = make_row(seed, encoder, TOLD)
    asked = [unit for unit in units if unit.record is not None and unit.record.meta["form"] == "when_appeared"]
    there = 0
    for unit in asked:
        answer = encoder.decode(unit.ids[unit.first :])
        there += answer in encoder.decode([one for one in unit.ids[: unit.first] if one != NEWLINE])
    assert there == len(asked) > 0


def test_what_notes_are_asked_for_may_be_long_before_what_is_in_view(encoder: Encoder):
    """Behind a pause a note, and the answer that it holds, has its own minute, and the frames have theirs."""

    def seconds(clock: str) -> int:
        return 60 * int(clock[1:3]) + int(clock[4:6])

    told = replace(TOLD, tokens=1024)
    far, minutes = 0, list[int]()
    for seed in range(60):
        script, arrays, units = make_clip(seed, encoder, told)
        newest = encoder.decode([int(one) for one in arrays["clock"][-1]])
        assert newest == script.clock(script.start + script.frames - 1)
        for unit in units:
            answer = encoder.decode(unit.ids[unit.first :])
            if unit.kind == "recalled" and answer.startswith("[") and script.lag[-1:].sum() > 120:
                assert unit.record is not None
                came = unit.record.meta["form"] == "when_appeared"
                if came and unit.record.evidence[0][0] < script.times[script.start] - 2:
                    far += 1
                    assert (seconds(newest) - seconds(answer)) % 6000 >= script.lag[-1]
                    notes = encoder.decode([one for one in unit.ids[: unit.first] if one != NEWLINE])
                    minutes.append(len(set(re.findall(r"\[\d\d:", notes))))
    assert far > 2 and max(minutes) > 5


def test_frames_beside_texts_may_be_long_after_their_notes(encoder: Encoder):
    """The times of frames stand first, some an hour after the last note; answers have the times of notes."""
    framed, ages = 0, []
    units = [unit for seed in range(6) for unit in make_row(seed, encoder, TOLD)[1]]
    for unit in units:
        text = encoder.decode([one for one in unit.ids[: unit.first] if one != NEWLINE])
        times = re.match(r"(\[\d\d:\d\d\])+(?=\[)", text)
        if times is not None:
            framed += 1
            *_, newest, _ = re.findall(r"\[(\d\d):(\d\d)\]", text[: times.end()] + "[00:00]")
            last = re.findall(r"\[(\d\d):(\d\d)\]", text)[-1]
            ages.append((60 * int(newest[0]) + int(newest[1]) - 60 * int(last[0]) - int(last[1])) % 6000)
    assert 0.3 < framed / len(units) < 1
    assert max(ages) > 600 and min(ages) < 60


def test_a_look_at_texts_tells_by_task(trainer: Trainer):
    row = look_at_texts(trainer, TOLD, 4)
    assert 0 <= row["text"] <= 1 and any(name.startswith("text when") for name in row)


def test_notes_are_of_the_second_in_which_it_was(encoder: Encoder):
    """What a thinker would keep, second by second, against what the script says."""
    import random

    script = draw_script(2, TOLD, random.Random(2))
    until = len(script.times) - 5
    lines = [line for text in notes_of(script, until, 0.0, random.Random(0)) for line in text.split("\n")]
    wanted = sorted((h.frame, h.what) for h in script.happenings if h.frame <= until)
    assert sorted(lines) == sorted(f"{script.clock(frame)} {what}" for frame, what in wanted) and lines
    for seed in range(3):
        _, _, units = make_clip(seed, encoder, TOLD)
        for unit in units:
            if unit.kind == "note":
                said = encoder.decode(unit.ids[unit.first :])
                assert "[" not in said and all(len(line.split()) in (2, 3, 4) for line in said.split("\n") if line)
