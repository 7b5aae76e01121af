"""A saved directory is there whole, or not at all, and says what it holds."""

from __future__ import annotations

import errno
import json
import resource
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from export.models import Branching, Stand, compressed
from secateur.errors import FileError, MissingExtraError
from secateur.export import load, onnx, read_directory, save_directory
from secateur.export.tensors import read_tensors, write_tensors

FILES = {"model.safetensors", "plan.json", "inputs.safetensors", "model.pt2", "report.html", "report.json"}
REPORTS = {"report.html": "<p>Ergebnis: ½</p>", "report.json": "{}"}


class Interrupted(Mapping[str, str]):
    """Reports that fail when they are written, which comes last."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    def __getitem__(self, name: str) -> str:
        raise self.failure

    def __iter__(self) -> Iterator[str]:
        return iter(["report.html"])

    def __len__(self) -> int:
        return 1


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let every file that grows larger fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def small(tied: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """A result whose program is not exported, which takes most of the time."""
    monkeypatch.setattr("secateur.export.directory._write_program", lambda *_: None)
    return tied


def test_the_directory_holds_all_files(tmp_path: Path, nested: Stand) -> None:
    path = save_directory(nested, tmp_path / "new" / "out", reports=REPORTS, onnx=False)
    assert {file.name for file in path.iterdir()} == FILES
    assert (path / "report.html").read_text(encoding="utf-8") == REPORTS["report.html"]
    assert {oct(file.stat().st_mode) for file in path.iterdir()} == {oct((path / "report.html").stat().st_mode)}
    assert [file.name for file in path.parent.iterdir()] == ["out"]


def test_the_plan_file_says_what_the_directory_holds(saved: dict[str, Path], tied: Stand, nested: Stand) -> None:
    found = read_directory(saved["tied"])
    assert (found.plan, found.kind, found.model_class) == (tied.plan, "module", "export.models.Tied")
    assert found.stages == tied.stages
    assert found.tied == {"embed.weight": ("embed.weight", "head.weight")}
    assert found.proof == json.loads(json.dumps(tied.proof.to_json()))
    assert found.versions["torch"] == torch.__version__
    assert found.open_sizes == {"ids": (0, 1)}
    assert found.left_out == {}
    assert read_directory(saved["nested"]).inputs == {
        "input_0_0": {"shape": [2, 3], "dtype": "float32"},
        "input_0_1": {"shape": [2, 3], "dtype": "float32"},
        "options_shift": {"shape": [2, 3], "dtype": "float32"},
        "scale": {"value": "2.0"},
    }


def test_tied_tensors_are_stored_once(saved: dict[str, Path]) -> None:
    with safe_open(saved["tied"] / "model.safetensors", framework="pt") as file:
        assert "embed.weight" in file.keys()  # noqa: SIM118 - no mapping
        assert "head.weight" not in file.keys()  # noqa: SIM118 - no mapping
        assert json.loads(file.metadata()["aliases"]) == {"head.weight": "embed.weight"}


def test_example_inputs_come_back_nested(saved: dict[str, Path], nested: Stand) -> None:
    args, kwargs = read_directory(saved["nested"]).examples()
    torch.testing.assert_close((args, kwargs), (nested.args, dict(nested.kwargs)), rtol=0, atol=0)


def test_no_pickle_is_written(saved: dict[str, Path]) -> None:
    with zipfile.ZipFile(saved["attention"] / "model.pt2") as archive:
        samples = [name for name in archive.namelist() if "sample_inputs" in name]
        assert [archive.getinfo(name).file_size for name in samples] == [0]
        assert not [name for name in archive.namelist() if archive.read(name).startswith((b"\x80\x02", b"PK"))]


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    values = {str(n): torch.full((2,), float(n)) for n in range(3)}
    metadata = {name: name for name in "fbdaec"}
    for number in range(8):
        write_tensors(values, tmp_path / str(number), metadata)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
    found, told = read_tensors(tmp_path / "0")
    assert told == metadata
    torch.testing.assert_close(found, values)


def test_an_existing_directory_is_refused(tmp_path: Path, small: Stand) -> None:
    path = save_directory(small, tmp_path / "out", reports={"report.html": "old"}, onnx=False)
    before = content(path)
    with pytest.raises(FileError, match="exists already"):
        save_directory(small, path, reports={"report.html": "new"}, onnx=False)
    assert content(path) == before


def test_force_replaces_a_directory(tmp_path: Path, small: Stand) -> None:
    path = save_directory(small, tmp_path / "out", reports={"old.html": "old"}, onnx=False)
    save_directory(small, path, reports={"new.html": "new"}, onnx=False, force=True)
    assert "new.html" in content(path)
    assert "old.html" not in content(path)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_force_spares_a_directory_of_other_files(tmp_path: Path, small: Stand) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileError, match="other files"):
        save_directory(small, tmp_path, onnx=False, force=True)
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_in_the_way_is_refused(tmp_path: Path, small: Stand) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileError, match="is a file"):
        save_directory(small, tmp_path / "out", onnx=False, force=True)
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("anything")], ids=["interrupt", "error"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, small: Stand, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        save_directory(small, tmp_path / "new" / "out", reports=Interrupted(failure), onnx=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("anything")], ids=["interrupt", "error"])
def test_a_failure_leaves_the_old_directory(tmp_path: Path, small: Stand, failure: BaseException) -> None:
    path = save_directory(small, tmp_path / "out", onnx=False)
    before = content(path)
    with pytest.raises(type(failure)):
        save_directory(small, path, reports=Interrupted(failure), onnx=False, force=True)
    assert content(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_failing_swap_puts_the_old_directory_back(tmp_path: Path, small: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_directory(small, tmp_path / "out", onnx=False)
    before, rename = content(path), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if (self / "second.html").exists():
            raise OSError(errno.EIO, "the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(FileError, match="the disk is gone"):
        save_directory(small, path, reports={"second.html": ""}, onnx=False, force=True)
    assert content(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("room", "file"), [(200, "model.safetensors"), (5000, "model.pt2")])
def test_without_disk_space_nothing_is_left(tmp_path: Path, saved: dict[str, Path], nested: Stand, room: int, file: str) -> None:
    assert room < (saved["nested"] / file).stat().st_size
    with files_of_at_most(room), pytest.raises(FileError, match=rf"Cannot write {file}"):
        save_directory(nested, tmp_path / "out", onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_export_is_left_out_with_the_reason(tmp_path: Path) -> None:
    torch.manual_seed(1)
    result = compressed(Branching(), torch.rand(2, 3), prefer="module")
    path = save_directory(result, tmp_path / "out", onnx=True)
    assert {file.name for file in path.iterdir()} == {"model.safetensors", "plan.json", "inputs.safetensors"}
    left_out = read_directory(path).left_out
    assert set(left_out) == {"model.pt2", "model.onnx"}
    assert "data-dependent" in left_out["model.pt2"]
    torch.testing.assert_close(result.outputs(load(path, into=Branching().eval())), result.outputs(), rtol=0, atol=0)
    with pytest.raises(FileError, match=r"holds no model.pt2.*into="):
        load(path)


def test_inputs_that_need_pickle_are_left_out_with_the_reason(tmp_path: Path, small: Stand) -> None:
    path = save_directory(replace(small, kwargs={"cache": object()}), tmp_path / "out", onnx=False)
    assert "object is neither a tensor nor a plain value" in read_directory(path).left_out["inputs.safetensors"]
    with pytest.raises(FileError, match="no example inputs"):
        read_directory(path).examples()


def test_onnx_without_its_packages(tmp_path: Path, small: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "a_package_that_nobody_has"))
    with pytest.raises(MissingExtraError, match=r"secateur\[onnx\]"):
        save_directory(small, tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []
    path = save_directory(small, tmp_path / "out")
    assert "not installed" in read_directory(path).left_out["model.onnx"]
    assert "model.onnx" not in content(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda whole: whole.pop("kind"), "kind"),
        (lambda whole: whole.update(kind="other"), "unknown kind"),
        (lambda whole: whole.update(format="secateur-directory/99"), "this version reads"),
        (lambda whole: whole.update(plan={}), "The plan has no"),
        (lambda whole: whole.update(stages=[1]), "TypeError"),
    ],
)
def test_a_damaged_plan_file_is_refused(tmp_path: Path, saved: dict[str, Path], change: Any, told: str) -> None:
    whole = json.loads((saved["tied"] / "plan.json").read_text())
    change(whole)
    (tmp_path / "plan.json").write_text(json.dumps(whole))
    with pytest.raises(FileError, match=rf"plan.json is damaged.*{told}"):
        read_directory(tmp_path)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no directory that Secateur saved"):
        read_directory(tmp_path)
