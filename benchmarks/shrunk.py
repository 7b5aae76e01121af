"""Cut every architecture of transformers whose default config can be made small without knowing it.

    python benchmarks/shrunk.py                        # all of them; results in benchmarks/results/shrunk.jsonl
    python benchmarks/shrunk.py llama mamba t5         # some of them
    python benchmarks/shrunk.py --summary              # what is in the results

Numbers in a config that are called as sizes usually are (`hidden_size`, `num_layers`, ...) are made small, the model gets
random weights, and inputs follow from the names of its forward's arguments. Where that makes no model that runs, the row
says so: that is a limit of this script. Of all others half of every layer and a quarter of the heads is cut by L2 norm; the
result is proven and run on another batch size. Each model has a process of its own, forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "shrunk.jsonl"
LARGEST = 60_000_000
"""Parameters above which a model is left out."""

_SIZES = {
    2: "num_experts_per_tok num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_encoder_layers num_key_value_heads linear_num_key_heads",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts num_local_experts "
    "n_routed_experts time_step_rank qk_rope_head_dim conv_kernel linear_num_value_heads",
    8: "head_dim d_kv state_size num_queries qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim",
    16: "block_size q_lora_rank kv_lora_rank",
    32: "hidden_size d_model n_embd dim embed_dim embedding_size hidden_dim word_embed_proj_dim projection_dim moe_intermediate_size "
    "encoder_hidden_size decoder_hidden_size",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner mlp_dim max_position_embeddings n_positions n_ctx "
    "image_size",
    99: "vocab_size",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id")


def shrink(config: Any) -> None:
    """Make the numbers of a config, and of those in it, small."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_diff_dict"):
            shrink(value)
        elif name in SMALL and type(value) is int and value > SMALL[name]:
            setattr(config, name, SMALL[name])
        elif name in _TOKENS and type(value) is int and value >= SMALL["vocab_size"]:
            setattr(config, name, 1)
        elif name == "layer_types" and isinstance(value, list):
            setattr(config, name, value[:2])


def inputs_of(model: Any, config: Any, batch: int) -> dict[str, Any]:
    """Inputs by the names that the model's forward asks for."""
    import torch

    asked, main = inspect.signature(model.forward).parameters, getattr(model, "main_input_name", "input_ids")
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None) or 64
    sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
    channels = getattr(config, "num_channels", 3)
    tokens = torch.randint(3, 90, (batch, 12))
    found = {}
    if "pixel_values" in (main, *asked):
        found["pixel_values"] = torch.randn(batch, channels if isinstance(channels, int) else 3, *sides)
    if main == "input_values":
        found["input_values"] = torch.randn(batch, 4000)
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
        found["input_features"] = torch.randn(batch, 100, bins)
    if "input_ids" in asked and main in ("input_ids", "pixel_values"):
        found["input_ids"] = tokens
    if config.is_encoder_decoder and "decoder_input_ids" in asked:
        found["decoder_input_ids"] = tokens[:, :8]
    return found


def examine(name: str) -> dict[str, Any]:
    """One architecture, from its default config to a proven result."""
    import torch
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    torch.manual_seed(0)
    row: dict[str, Any] = {"model": name}
    try:
        config = CONFIG_MAPPING[name]()
        shrink(config)
        kind = MODEL_MAPPING[type(config)]
        model = (kind[0] if isinstance(kind, tuple) else kind)(config).eval()
        row["parameters"] = sum(p.numel() for p in model.parameters())
        if row["parameters"] > LARGEST:
            return row | {"not_run": f"{row['parameters']:,} parameters"}
        inputs, other = (inputs_of(model, config, batch) for batch in (2, 3))
        with torch.no_grad():
            model(**inputs)
    except Exception as error:  # noqa: BLE001 - a config that nobody looked at may fail in any way
        return row | {"not_run": f"{type(error).__name__}: {str(error)[:150]}"}
    start = time.process_time()
    try:
        row |= _cut(model, inputs, other)
    except Exception as error:  # noqa: BLE001 - a failure is a result here
        row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
    return row | {"seconds": round(time.process_time() - start, 1)}


def _cut(model: Any, inputs: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    import torch

    import secateur as sc

    study = sc.study(model, inputs)
    heads = 0.25 if any(layer.kind == "blocks" and layer.prunable for layer in study.layers) else None
    result = sc.apply(study, study.plan(sc.L2(), ratio=0.5, heads=heads))
    row: dict[str, Any] = {"kind": result.kind, "error": result.proof.error, "left": result.after.parameters / result.before.parameters}
    row |= {"prunable": study.layers.prunable_parameters, "without_rule": sorted(set(study.layers.unknown.values()))}
    row |= {"captured": study.capture.how, "held": _held(study)}
    with torch.no_grad():
        try:
            model(**other)
        except Exception:  # noqa: BLE001 - what the dense model refuses, the smaller one need not take
            return row
        try:
            result.model(**other)
        except Exception as error:  # noqa: BLE001 - a failure is a result here
            return row | {"batch": f"{type(error).__name__}: {str(error)[:150]}"}
    return row | {"batch": "yes"}


def _held(study: Any) -> dict[str, float]:
    """The three reasons that hold most, with the share of the parameters that lies at such layers."""
    shares: Counter[str] = Counter()
    for layer in study.layers:
        if not layer.prunable:
            shares[str(layer.reason).partition(" (node")[0]] += layer.parameter_share
    return {reason: round(share, 2) for reason, share in shares.most_common(3)}


def forked(name: str, seconds: int) -> dict[str, Any]:
    """Run one model in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        with os.fdopen(writing, "w") as out, open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            json.dump(examine(name), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as come:
        text = come.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"model": name, "failed": f"the process ended with status {status} (limit {seconds} s)"}


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """How many were proven, and what became of the others."""
    rows = list(rows)
    run = [row for row in rows if "not_run" not in row]
    proven = [row for row in run if "error" in row]
    kinds = ", ".join(f"{count} as {kind}" for kind, count in Counter(row["kind"] for row in proven).items())
    worst = max((row["error"] for row in proven), default=0.0)
    lines = [f"{len(rows)} architectures, {len(run)} of them run, {len(proven)} cut and proven ({kinds}), largest error {worst:.0e}"]
    lines += [f"failed: {row['model']}: {row['failed']}" for row in run if "failed" in row]
    lines += [f"another batch size: {row['model']}: {row['batch']}" for row in proven if row.get("batch", "yes") != "yes"]
    return "\n".join(lines)


def main() -> None:
    """Run those that have no result yet, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures as transformers calls them (model_type); all by default")
    parser.add_argument("--seconds", type=int, default=150, help="limit for one model")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="run nothing")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    if not options.summary:
        import torch
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        import secateur  # noqa: F401 - imported once, for all forks

        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        known = {row["model"] for row in rows}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        for name in options.names or MODEL_MAPPING_NAMES:
            if name not in known:
                rows.append(forked(name, options.seconds))
                with options.results.open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(summary(row for row in rows if not options.names or row["model"] in options.names))


if __name__ == "__main__":
    main()
