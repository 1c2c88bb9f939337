import json
import shutil

import pytest
from tiny import make_tokenizer

from onlooker import models
from onlooker.core.errors import ModelError
from onlooker.models import load
from onlooker.models._prompt import Prompt


@pytest.fixture
def copied(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint to damage."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def test_families_are_the_files_of_the_room():
    assert "llava_onevision" in models.families()


def test_name_and_folder_text_both_load(tiny_folder):
    model = load(str(tiny_folder), device="cpu")
    assert model.spec.device.type == "cpu" and model.spec.name == str(tiny_folder)


@pytest.mark.parametrize(
    "name, hint", [("pockt", "pocket"), ("pocket_aware", "pocket-aware"), ("./nowhere", "existing")]
)
def test_names_that_do_not_exist_are_refused_with_a_hint(name, hint):
    with pytest.raises(ModelError, match=hint):
        load(name)


def test_a_built_in_model_without_weights_says_so(monkeypatch):
    monkeypatch.setitem(models.BUILT_IN, "pocket", "absent")
    with pytest.raises(ModelError, match="built-in"):
        load("pocket")


def test_hub_ids_without_a_network_are_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub") as caught:
        load("nobody/no-such-model-at-all")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match="holds no model"):
            load(tmp_path)


def test_another_family_is_refused_by_name(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "llava_onevisoin"}))
    with pytest.raises(ModelError, match="did you mean llava_onevision"):
        load(copied)
    from onlooker.models.llava_onevision import LlavaOnevision

    with pytest.raises(ModelError, match="is no llava_onevision"):
        LlavaOnevision.from_pretrained(copied)


def test_missing_and_damaged_weights_are_refused(copied):
    weights = copied / "model.safetensors"
    content = weights.read_bytes()
    for damage in (content[: len(content) // 2], b"", b"not a tensor file at all"):
        weights.write_bytes(damage)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(copied, device="cpu")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copied, device="cpu")


def test_incomplete_weights_are_refused(copied):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    del tensors[next(name for name in sorted(tensors) if "linear_1" in name)]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="incomplete"):
        load(copied, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_missing_parts_are_refused(copied, name):
    (copied / name).unlink()
    with pytest.raises(ModelError):
        load(copied, device="cpu")


def test_a_damaged_processor_file_is_refused(copied):
    (copied / "processor_config.json").write_text("{")
    with pytest.raises(ModelError):
        load(copied, device="cpu")


def test_unknown_device_and_number_format_are_refused(tiny_folder):
    with pytest.raises(ModelError, match="device"):
        load(tiny_folder, device="warp:9")
    with pytest.raises(ModelError, match="number format"):
        load(tiny_folder, device="cpu", dtype="int3")


def test_the_template_may_lie_where_older_checkpoints_keep_it(copied):
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load(copied, device="cpu")
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load(copied, device="cpu").prefix_ids()


def test_the_processors_template_comes_before_that_of_the_bare_language_model(copied):
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ModelError, match="cut"):
        load(copied, device="cpu")
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load(copied, device="cpu").prefix_ids()


def test_of_several_templates_the_one_that_the_library_would_take_is_taken(copied):
    """`processor_config.json` before `chat_template.json` before `chat_template.jinja`, as its processors read them."""
    from transformers.processing_utils import ProcessorMixin

    template, settings = (copied / "chat_template.jinja").read_text(), copied / "processor_config.json"
    marked = {name: template.replace("You watch a video.", name) for name in ("one", "two", "three")}
    (copied / "chat_template.jinja").write_text(marked["three"])
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": marked["two"]}))
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": marked["one"]}))
    for name, file in (("one", settings), ("two", copied / "chat_template.json"), ("three", None)):
        found = ProcessorMixin.get_processor_dict(copied)[0]["chat_template"]
        model = load(copied, device="cpu")
        assert found == marked[name] and model.decode_text(model.prefix_ids()).split("\n")[1] == name
        if file is settings:
            settings.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k[:4] != "chat"}))
        elif file is not None:
            file.unlink()


def test_a_damaged_template_is_refused(copied):
    (copied / "chat_template.json").write_text("{")
    with pytest.raises(ModelError, match="template cannot be read"):
        load(copied, device="cpu")


def test_loading_says_nothing(tiny_folder, capfd):
    load(tiny_folder, device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'][1]['text'] }}",
        "<video><video>{{ messages[0]['content'][1]['text'] }}",
        "{{ messages[0]['content'][1]['text'] }}<video>",
        "a video<video>",
    ],
)
def test_templates_that_cannot_be_cut_are_refused(template):
    tokenizer = make_tokenizer()
    with pytest.raises(ModelError, match="cut"):
        Prompt(tokenizer, [tokenizer.convert_tokens_to_ids("<video>")], template)
