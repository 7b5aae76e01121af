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
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
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
