"""Twins of one trunk: what they differ in, that they go on where they stopped, and what their looks hold."""

import json
from dataclasses import asdict, replace

import torch

from recipes.pocket.data import SMOKE, Feed
from recipes.pocket.model import TINY
from recipes.pocket.select import choose_tokens, covered
from recipes.pocket.twins import GATES, LOOK, MIXES, main, make_twin, settings_of, take_turns

CPU = torch.device("cpu")
DATA = replace(SMOKE, easy_batches=0, buckets=((8, 1.0),))


def test_mixes_differ_in_the_gaps_alone():
    made = [asdict(settings_of(mix, 1, 5, 2.0, 1e-3)) for mix in MIXES]
    assert len({one.pop("arm") for one in made}) == len(MIXES)
    assert all(one == made[0] for one in made)


def test_ground_truth_keeps_what_shows_things():
    owner = torch.full((1, 2, 32, 32), -1)
    owner[0, 0, :8, :8], owner[0, 1, 24:, 16:20] = 0, 3
    cover = covered(owner, 16)
    assert cover[0, 0, 0] == 1.0 and cover[0, 1, 14] == 0.5 and cover.count_nonzero() == 2
    counts = torch.full((1, 2), 3)
    features, generator = torch.randn(1, 2, 16, 4), torch.Generator().manual_seed(0)
    keep = choose_tokens(features, counts, generator, False, cover)
    assert keep.sum(2).tolist() == [[3, 3]] and keep[0, 0, 0] and keep[0, 1, 14]


def test_turns_go_on_where_they_stopped(tmp_path):
    def twins(steps: int):
        settings = [replace(settings_of("chance", seed, steps, float("inf"), 1e-3), warm_share=1e-9, fall_from=1.0)
                    for seed in (0, 1)]  # fmt: skip
        return [make_twin(one, None, CPU, sizes=TINY, compiled=False) for one in settings]

    def turns(trainers, batches) -> None:
        take_turns(trainers, batches, tmp_path / "lines.jsonl", {"mix": "chance"}, keep=tmp_path, log_every_s=0.0)

    source = iter(Feed(DATA, 0))
    batches = [next(source) for _ in range(4)]
    first = twins(1)
    turns(first, iter(batches[:2]))
    again = twins(2)
    for trainer in again:
        trainer.load(tmp_path / f"chance{trainer.settings.seed}")
    turns(again, iter(batches[2:]))
    whole = twins(2)  # made here: what blurs the pictures is drawn from one generator for all
    for trainer in whole:  # moments are rounded where a state is written
        trainer.step(*batches[trainer.settings.seed])
        trainer.optimiser.round_moments()
        trainer.progress.seconds = 0.0
    turns(whole, iter(batches[2:]))
    for one, two in zip(again, whole, strict=True):
        for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
            torch.testing.assert_close(p, q)
    assert not torch.equal(again[0].model.heads.weight, again[1].model.heads.weight)


def test_the_command_writes_looks_of_every_twin(tmp_path):
    file = tmp_path / "truth.jsonl"
    main(["--mix", "truth", "--smoke", "--seeds", "0", "1", "--steps", "2", "--workers", "0", "--sealed", "a-test",
          "--clips", "2", "--gate-levels", "L2", "--gate-clips", "2", "--device", "cpu",
          "--to", str(file)])  # fmt: skip
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    looks = [line for line in lines if "marks" in line]
    assert [line["seed"] for line in looks] == [0, 1] and all(set(line["marks"]) == set(LOOK) for line in looks)
    assert [set(line["validation"]) for line in lines if "validation" in line] == [set(GATES)] * 2
    assert {line["mix"] for line in lines} == {"truth"} and looks[0]["step"] == 2
