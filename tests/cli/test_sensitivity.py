"""The command that cuts each group alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import IMAGE, Secateur

MODEL = ("sensitivity", "cli.models:convnet", *IMAGE, "--data", "cli.models:samples")


def test_it_shows_every_group_at_every_ratio_and_writes_what_it_says(secateur: Secateur, tmp_path: Path) -> None:
    out = tmp_path / "alone.json"
    done = secateur(*MODEL, "--ratios", "0.25,0.5", "--evaluate", "cli.lessons:brightness", "--out", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(out.read_text()) == done.data
    assert done.data["metric"] == "brightness"
    groups = list(dict.fromkeys(cut["group"] for cut in done.data["cuts"]))
    assert [(cut["group"], cut["ratio"]) for cut in done.data["cuts"]] == [(group, ratio) for group in groups for ratio in (0.25, 0.5)]
    assert len(groups) > 1
    assert all([edit["group"] for edit in cut["plan"]["edits"]] == [cut["group"]] for cut in done.data["cuts"])
    assert {cut["plan"]["settings"]["source"]["model"] for cut in done.data["cuts"]} == {"cli.models:convnet"}


def test_settings_reach_it_and_nothing_is_recovered_by_itself(secateur: Secateur) -> None:
    options = ("--ratios", "0.5", "--criterion", "gm", "--exclude", "0")
    plain = secateur(*MODEL, *options, "--json")
    bare = secateur(*MODEL, *options, "--recover", "none", "--json")
    mended = secateur(*MODEL, *options, "--recover", "standard", "--json")
    assert plain.code == mended.code == 0, plain.err + mended.err
    assert {cut["plan"]["settings"]["criterion"][:15] for cut in plain.data["cuts"]} == {"GeometricMedian"}
    assert "0" not in {cut["group"] for cut in plain.data["cuts"]}
    metrics = [[cut["metric"] for cut in done.data["cuts"]] for done in (plain, bare, mended)]
    assert metrics[0] == metrics[1] != metrics[2]


def test_a_person_gets_a_table(secateur: Secateur) -> None:
    done = secateur(*MODEL, "--ratios", "0.5")
    assert done.code == 0, done.err
    assert "with one group cut" in done.out
    assert "0.5" in done.out


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        (("--ratios", "0.8,half"), 2, "numbers between commas"),
        (("--ratios", "2"), 1, "2"),
        (("--evaluate", "cli.lessons:nothing_such"), 1, "nothing_such"),
        (("--out", "no/such/folder/alone.json", "--ratios", "0.5"), 1, "Error: Cannot write no/such/folder/alone.json"),
    ],
)
def test_wrong_use_is_told(secateur: Secateur, options: tuple[str, ...], code: int, match: str) -> None:
    done = secateur(*MODEL, *options)
    assert done.code == code
    assert match in " ".join(done.err.split())


def test_a_file_that_is_there_is_refused_before_the_work(secateur: Secateur, tmp_path: Path) -> None:
    (tmp_path / "alone.json").write_text("")
    done = secateur("sensitivity", "cli.models:no_such_model", *IMAGE, "--out", tmp_path / "alone.json")
    assert done.code == 1
    assert "exists already" in done.err
