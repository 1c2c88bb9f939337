"""onlooker config check, and the server's options that name a file."""

import pytest

GOOD = """
[server]
fps = 5.0
[[sources]]
name = "door"
url = "synthetic:1"
"""


def test_config_check_prints_one_line_each(run, tmp_path):
    file = tmp_path / "onlooker.toml"
    file.write_text(GOOD)
    good = run("config", "check", file)
    assert (good.code, good.out) == (0, "all is well\n")
    file.write_text(GOOD.replace("5.0", "-5.0").replace("synthetic:1", "").replace("url", "utl"))
    bad = run("config", "check", file)
    assert bad.code == 2 and [line.partition(":")[0] for line in bad.out.splitlines()] == [
        "server.fps",
        "sources.door.utl",
    ]
    assert len(run("config", "check", file, "--json").json["faults"]) == 2
    missing = run("config", "check", tmp_path / "none.toml")
    assert missing.code == 2 and "cannot be read" in missing.out


def test_a_model_that_is_not_there_is_a_fault(run, tmp_path):
    file = tmp_path / "onlooker.toml"
    file.write_text(f'[model]\nname = "pockett"\n{GOOD}')
    told = run("config", "check", file)
    assert told.code == 2 and told.out.startswith("model.name: ") and "pockett" in told.out


def test_a_host_without_a_key_is_a_fault(run, tmp_path):
    file = tmp_path / "onlooker.toml"
    file.write_text('[server]\nhost = "0.0.0.0"\n')
    told = run("config", "check", file)
    assert told.code == 2 and "this machine only" in told.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "none.toml"], "none.toml: it cannot be read"),
        (["--source", "a=env:NOT_SET_HERE"], "environment variable NOT_SET_HERE is not set"),
        (["--source", "a=@none"], "none cannot be read"),
        (["--source", "a=synthetic", "--source", "a=synthetic"], "two sources have one name"),
        (["--log", "xml"], "server.log"),
        (["--max-memory", "much"], "a budget is a number of bytes"),
        (["--memory", "none_such"], "there is no memory of that name"),
        (["--webhook", "http://127.0.0.1:1/x"], "secret"),
    ],
)
def test_serve_says_in_one_line_what_is_wrong(run, words, said):
    told = run("serve", "pocket", *words)
    assert told.code == 2 and said in told.err and len(told.err.strip().splitlines()) == 1, told.err
