"""The examples of the page on fine-tuning run, one after the other, as they stand there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    blocks = _blocks("python")
    names: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 6
    assert names["tuned"].record.epochs
    assert set(names["distilled"].parts) == {"labels", "logits", "features"}
    assert names["done"].composed
    assert (tmp_path / "state" / "checkpoint.safetensors").is_file()
    assert (tmp_path / "small" / "plan.json").is_file()


def test_the_part_on_lightning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's own
        pytest.importorskip("pytorch_lightning")
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {"__name__": "page"}
        (lightning,) = _blocks("py")
        for block in (_blocks("python")[0], lightning):
            exec(compile(block, str(PAGE), "exec"), names)
    assert set(names["lit"].distilled.parts) == {"labels", "logits", "features"}
    before = names["sc"].apply(names["study"], names["plan"]).model.state_dict()
    assert any(not value.equal(before[name]) for name, value in names["lit"].model.state_dict().items())


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
