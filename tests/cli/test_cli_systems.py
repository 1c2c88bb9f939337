"""onlooker systems: what stands for each published system."""


def test_one_system_shows_its_proof_line_by_line(run) -> None:
    ran = run("systems", "ReKV")
    assert ran.code == 0 and "memory/rekv" in ran.out and "proven: everything recalled equals full" in ran.out
    (row,) = run("systems", "rekv", "--json").json
    assert row["status"] == "adapts" and row["declared"] == ["memory/rekv"]
    assert run("systems", "nope").code == 2
