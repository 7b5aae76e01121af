"""A directory that the class itself loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from networks.configured import Configured, Settings

UNIFORM = sc.Options(uniform=True)
TEXT = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 40}


def cut(model: torch.nn.Module, inputs: Any, **wishes: Any) -> sc.Result:
    study = sc.study(model, inputs)
    return sc.apply(study, study.plan(options=UNIFORM, **wishes))


def test_the_class_loads_what_its_config_describes(tmp_path: Path) -> None:
    x = torch.randn(2, 5)
    result = cut(Configured(Settings()), x, ratio=0.5)
    again = Configured.from_pretrained(result.save_pretrained(tmp_path / "small"))
    assert (again.config.width, again.config.inner) == (6, 12)
    torch.testing.assert_close(again(x), result.model(x))
    assert any("width 12 -> 6, inner 24 -> 12" in note for note in result.notes)
    with pytest.raises(sc.FileError):
        result.save_pretrained(tmp_path / "small")
    result.save_pretrained(tmp_path / "small", force=True)


def test_a_class_that_derives_more_than_widths_is_told(tmp_path: Path) -> None:
    result = cut(Configured(Settings(scaled=True)), torch.randn(2, 5), ratio=0.5)
    assert result.proof.holds
    with pytest.raises(sc.RewriteError, match=r"width 12 -> 6.*derives more than widths"):
        result.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_other_plans_are_told_of_uniform(tmp_path: Path) -> None:
    study = sc.study(Configured(Settings()), torch.randn(2, 5))
    with pytest.raises(sc.RewriteError, match="uniform=True"):
        sc.apply(study, study.plan(ratio=0.5)).save_pretrained(tmp_path / "small")


LLAMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 16}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": 40, "word_embed_proj_dim": 32}
CASES = {
    "grouped queries": ("LlamaForCausalLM", "LlamaConfig", LLAMA, {"ratio": 0.5, "heads": 0.5}),
    "classifier": ("BertForSequenceClassification", "BertConfig", TEXT, {"ratio": 0.5}),
    "width without a value": ("GPT2LMHeadModel", "GPT2Config", GPT2, {"ratio": 0.25}),
    "width said twice": ("OPTForCausalLM", "OPTConfig", OPT, {"target": sc.Target(macs=0.6)}),
}
EXPECTED = {
    "grouped queries": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    "classifier": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4},
    "width without a value": {"n_embd": 24, "n_inner": 96, "n_head": 4},
    "width said twice": {"hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 36},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_transformers_load_without_secateur(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    name, config, settings, wishes = CASES[case]
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = getattr(transformers, name)(getattr(transformers, config)(**settings, **tokens)).eval()
    ids = torch.randint(3, 40, (2, 9))
    result = cut(model, {"input_ids": ids, **({} if case == "classifier" else {"use_cache": False})}, **wishes)
    where = result.save_pretrained(tmp_path / "small")
    written = json.loads((where / "config.json").read_text())
    assert {key: written[key] for key in EXPECTED[case]} == EXPECTED[case]
    again = type(model).from_pretrained(where)
    torch.testing.assert_close(again(ids).logits, result.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
