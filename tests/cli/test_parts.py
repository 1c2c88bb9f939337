"""Files of trained parts that are named behind a model, wherever a model is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onlooker import models
from onlooker.core.errors import InputError, ModelError
from onlooker.engine import Engine
from onlooker.evals.run_settings import from_dict
from onlooker.evals.runs import execute
from onlooker.models._parts import split
from onlooker.server.bodies import NoteBody
from onlooker.server.config import read_config
from onlooker.server.notes import write_note

TOWER = Path(__file__).parents[1] / "engine" / "side_towers.py"
ADAPTER = """
from onlooker.core.contracts import Adapter
from onlooker.core.state import StreamState

class Twice(Adapter):
    name = "twice"

    def new_state(self):
        return StreamState()

    def adapt(self, tokens, state):
        import dataclasses
        return dataclasses.replace(tokens, features=2 * tokens.features)
"""
QUESTION = "what is there ?"


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "twice.py").write_text(ADAPTER, encoding="utf-8")
    width = models.load(tiny_folder, device="cpu").spec.hidden_dim
    chance = torch.Generator().manual_seed(0)
    people = {name: torch.randn(3, width, generator=chance) for name in ("anna", "otto")}
    save_file(people, folder / "people.safetensors")
    save_file({"anna": torch.zeros(3, 7)}, folder / "narrow.safetensors")
    (folder / "none.py").write_text("x = 1\n", encoding="utf-8")
    return folder


def test_a_models_name_may_have_plus_signs_of_its_own(tmp_path):
    assert split("owner/a+b") == ("owner/a+b", ())
    assert split("owner/a+b+c.py+d.safetensors") == ("owner/a+b", ("c.py", "d.safetensors"))
    folder = tmp_path / "a+b.py"
    folder.mkdir()
    assert split(str(folder)) == (str(folder), ())
    assert models.short_name("models/pocket+parts/tower.py") == "pocket+tower.py"


def test_parts_are_attached_and_prefixes_known(files, tiny_folder):
    model = models.load(f"{tiny_folder}+{files / 'twice.py'}+{TOWER}+{files / 'people.safetensors'}", device="cpu")
    assert {"twice", "motion", "speed"} <= model.offers and set(model.prefixes) == {"anna", "otto"}
    session = Engine(model, memory="full").open()
    span = session.prefix("anna")
    assert span.num_tokens == 3 and session.notes()[0].text == "anna"
    with pytest.raises(InputError, match="no soft prefix of that name"):
        session.prefix("berta")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("nothing.py", "no such trained part"),
        ("none.py", "one Adapter or SideTower"),
        ("narrow.safetensors", "language model's width"),
        ("people.safetensors+x.txt", "no such trained part"),
    ],
)
def test_what_is_no_part_is_refused(part, words, files, tiny_folder):
    name = "+".join([str(tiny_folder), *(str(files / one) for one in part.split("+"))])
    with pytest.raises((InputError, ModelError), match=words):
        models.load(name, device="cpu")


def test_a_tower_is_counted_in_a_plan(run):
    row, plain = (run("plan", "-m", name, "--json").json for name in (f"pocket+{TOWER}", "pocket"))
    (tower,) = row["further_towers"]
    assert (tower["tower"], tower["tokens"]) == ("motion", 16) and tower["weights_bytes"] > 0
    more = row["device_bytes_per_stream"] - plain["device_bytes_per_stream"]
    assert more == tower["state_bytes"] > 0 and row["weights_bytes"] > plain["weights_bytes"]


def test_from_the_command_line_a_run_and_a_server(run, files, film, tiny_folder, tmp_path):
    name = f"{tiny_folder}+{TOWER}+{files / 'people.safetensors'}"
    said = ["ask", film, QUESTION, "--at", "3", "--model", name, "--device", "cpu", "--json"]
    told = run(*said, "--prefix", "anna", "--prefix", "otto")
    assert told.code == 0, told.err
    assert told.json["stream"]["notes"] == 2 and told.json["stream"]["memory_bytes"]["motion_state"] > 0
    refused = run(*said, "--prefix", "berta")
    assert refused.code == 2 and "no soft prefix of that name" in refused.err and "anna, otto" in refused.err

    values = {"model": name, "device": "cpu", "limit": 2, "prefix": "anna"}
    done = execute(from_dict(values), tmp_path / "run")
    assert done.outcomes and not any(one.failure for one in done.outcomes)
    assert from_dict(values).key != from_dict(values | {"prefix": ""}).key
    with pytest.raises(InputError, match="no soft prefix"):
        execute(from_dict(values | {"prefix": "berta"}), tmp_path / "other")

    config = read_config(None, {"model": {"name": name, "device": "cpu"}})
    assert config.server_settings().model == f"{tiny_folder.name}+side_towers.py+people.safetensors"


def test_a_note_over_http_may_be_a_prefix(files, tiny_folder):
    session = Engine(models.load(f"{tiny_folder}+{files / 'people.safetensors'}", device="cpu"), memory="full").open()
    stream: Any = SimpleNamespace(session=session, wall_of=lambda time_s: None)
    assert write_note(stream, NoteBody(prefix="anna"))["text"] == "anna"
    assert session.notes()[0].text == "anna" and session.store.spans[-1].num_tokens == 3
    for body, words in ((NoteBody(prefix="berta"), "no soft prefix"), (NoteBody(), "a text, or a soft prefix")):
        with pytest.raises(InputError, match=words):
            write_note(stream, body)
