"""Bad input: one clear error, no partial output, nothing overwritten."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli.conftest import IMAGE, Secateur
from cli.models import convnet

CONVNET = "cli.models:convnet"
PRUNE = ("prune", CONVNET, *IMAGE, "--no-latency", "--no-onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds the same after the test as before."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "other.txt").write_text("not ours")
    before = contents(place)
    yield place / "out"
    assert contents(place) == before
    assert [path.name for path in place.iterdir()] == ["other.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layers", "absent.pt2"], r"There is no file absent\.pt2"),
        (["layers", "no.such:model"], r"Cannot find no\.such:model"),
        (["layers", "nonsense"], r"Cannot tell what model 'nonsense' means"),
        (["layers", CONVNET], r"no default input for cli\.models:convnet\. Give --input SHAPE"),
        (["layers", "cli.models:Pair"], r"one for each of x, index"),
        (["layers", CONVNET, "--input", "2x4x4x4"], r"does not run on the example inputs .*float32\[2, 4, 4, 4\]"),
        (["layers", CONVNET, "--input", "2xthree"], r"Cannot read the input '2xthree'"),
        (["layers", CONVNET, "--inputs", "absent.npz"], r"There is no file absent\.npz"),
        (["layers", CONVNET, *IMAGE, "--weights", "absent.safetensors"], r"There is no file absent\.safetensors"),
        (["layers", "cli.models:with_nan", *IMAGE], r"'0\.weight' holds NaN"),
        ([*PRUNE, "--ratio", 1.0], r"The ratio .*is 1\.0"),
        ([*PRUNE, "--ratios", "nowhere=0.5"], r"No layer matches 'nowhere'"),
        ([*PRUNE, "--ratios", "6=0.5"], r"reaches the model's output"),
        ([*PRUNE, "--ratio", 0.5, "--exclude", "nowhere"], r"No layer to leave alone matches 'nowhere'"),
        ([*PRUNE, "--indices", "0=0,1,2,3,4,5,6,7"], r"(?i)at least 1|all 8 channels|must stay"),
        ([*PRUNE, "--indices", "0=99"], r"has channels 0 to 7; 99 cannot be removed"),
        ([*PRUNE, "--target-macs", 1.5], r"as a fraction between 0 and 1"),
        ([*PRUNE, "--target-macs", 0.001], r"cannot be reached"),
        ([*PRUNE, "--ratio", 0.01], r"Nothing would be removed"),
        ([*PRUNE, "--ratio", 0.5, "--criterion", "nn"], r"NuclearNorm\(\) needs calibration data"),
        ([*PRUNE, "--ratio", 0.5, "--step-size", 0], r"step_size is 0"),
        (["prune", "cli.models:Attention", "--input", "2x3x8", "--indices", "q=0,1,2,4"], r"(?i)unequal|equal|each"),
        (["prune", "cli.models:single", "--input", "2x3", "--ratio", 0.5], r"Nothing of this model can be pruned"),
    ],
)
def test_one_error_and_no_output(words: list[object], message: str, secateur: Secateur, place: Path) -> None:
    out = ["--out", place] if words[0] == "prune" else []
    done = secateur(*words, *out)
    assert done.code == 1
    assert done.out == ""
    one_line = " ".join(done.err.split())
    assert one_line.startswith("Error: ")
    assert len(re.findall("^Error: ", done.err, flags=re.MULTILINE)) == 1
    assert "Traceback" not in done.err
    assert re.search(message, one_line), one_line


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["layers"],
        ["layers", CONVNET, "--nonsense"],
        ["layers", CONVNET, *IMAGE, "--inputs", "x.npz"],
        ["prune", CONVNET, *IMAGE, "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--ratio", 0.5],
        ["prune", CONVNET, *IMAGE, "--ratio", "half", "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--ratios", "0.5", "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--indices", "0=a", "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--heads", "0.5", "--heads", "a=0.5", "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--ratio", 0.5, "--criterion", "best", "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--ratio", 0.5, "--mix", 0.5, "--dry-run"],
        ["prune", CONVNET, *IMAGE, "--ratio", 0.5, "--dry-run", "--out", "out"],
        ["prune", CONVNET, *IMAGE, "--config", "absent.toml", "--dry-run"],
        ["apply", CONVNET, "plan.json"],
    ],
)
def test_wrong_usage_exits_with_two(words: list[object], secateur: Secateur) -> None:
    done = secateur(*words)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_a_config_file_with_an_unknown_option(secateur: Secateur, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("ratioo = 0.5\n")
    done = secateur("prune", CONVNET, *IMAGE, "--config", tmp_path / "c.toml", "--dry-run")
    assert done.code == 2
    assert "ratioo" in done.err


def test_an_existing_directory_is_left_alone(secateur: Secateur, saved: Path) -> None:
    before = contents(saved)
    for model in (CONVNET, "no.such:model"):
        done = secateur("prune", model, *IMAGE, "--ratio", 0.25, "--out", saved)
        assert done.code == 1
        assert "exists already" in done.err, "found out before any work is done"
    assert contents(saved) == before


def test_force_replaces_what_was_saved_and_nothing_else(secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(saved, ours)
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("the only copy")
    assert secateur(*PRUNE, "--indices", "0=1", "--out", ours, "--force").code == 0
    assert json.loads((ours / "plan.json").read_text())["plan"]["edits"][0]["remove"] == [1]
    done = secateur(*PRUNE, "--indices", "0=1", "--out", theirs, "--force")
    assert done.code == 1
    assert "holds other files" in done.err
    assert contents(theirs) == {"thesis.txt": b"the only copy"}


def test_an_existing_plan_is_left_alone(secateur: Secateur, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("mine")
    done = secateur("prune", CONVNET, *IMAGE, "--ratio", 0.5, "--dry-run", "--plan", tmp_path / "plan.json")
    assert done.code == 1
    assert "exists already" in done.err
    assert (tmp_path / "plan.json").read_text() == "mine"


def test_the_plan_of_another_model(secateur: Secateur, saved: Path, place: Path) -> None:
    done = secateur("apply", "cli.models:wider", saved, *IMAGE, "--out", place)
    assert done.code == 1
    assert "made for another model" in done.err


@pytest.mark.parametrize("text", ["", "{", '{"format": "other"}', "[]"])
def test_a_damaged_plan(text: str, secateur: Secateur, tmp_path: Path, place: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    done = secateur("apply", CONVNET, tmp_path / "plan.json", *IMAGE, "--out", place)
    assert done.code == 1
    assert "plan" in done.err


def test_truncated_weights(secateur: Secateur, tmp_path: Path, place: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(convnet().state_dict(), file)
    file.write_bytes(file.read_bytes()[:200])
    done = secateur(*PRUNE, "--ratio", 0.5, "--weights", file, "--out", place)
    assert done.code == 1
    assert "cannot be read as weights" in done.err


@pytest.mark.parametrize("command", ["prove", "bench"])
def test_truncated_weights_in_a_directory(command: str, secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    done = secateur(command, tmp_path / "out")
    assert done.code == 1
    assert "damaged" in done.err


@pytest.mark.parametrize("command", ["prove", "bench", "report"])
def test_a_directory_that_is_not_there(command: str, secateur: Secateur, tmp_path: Path) -> None:
    done = secateur(command, tmp_path / "absent")
    assert done.code == 1
    assert "absent" in done.err


def test_a_damaged_report(secateur: Secateur, tmp_path: Path) -> None:
    for text in ("", "[]", "{}"):
        (tmp_path / "report.json").write_text(text)
        done = secateur("report", tmp_path)
        assert done.code == 1
        assert "eport" in done.err


def test_pickles_need_trust(secateur: Secateur, tmp_path: Path) -> None:
    torch.save(convnet(), tmp_path / "m.pt")
    done = secateur("layers", tmp_path / "m.pt", *IMAGE)
    assert done.code == 1
    assert "--trust-pickle" in done.err
    assert secateur("layers", tmp_path / "m.pt", *IMAGE, "--trust-pickle", "--json").code == 0


def test_no_space_left(secateur: Secateur, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    done = secateur(*PRUNE, "--ratio", 0.5, "--out", place)
    monkeypatch.undo()
    assert done.code == 1
    assert "No space left on device" in done.err


def test_no_space_for_the_weights(secateur: Secateur, place: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        done = secateur(*PRUNE, "--ratio", 0.5, "--out", place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 1
    assert "Cannot write" in done.err


def test_debug_shows_where_an_error_comes_from(secateur: Secateur) -> None:
    with pytest.raises(Exception, match=r"There is no file absent\.pt2"):
        secateur("layers", "absent.pt2", "--debug")


def test_inputs_that_are_no_arrays(secateur: Secateur, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.array([{"a": 1}], dtype=object))
    done = secateur("layers", CONVNET, "--inputs", tmp_path / "x.npz")
    assert done.code == 1
    assert "no readable .npz" in done.err
