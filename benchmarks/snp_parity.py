"""Structure parity with SNP (Shim, Yun, Choi; ECCV 2024): sizes beside the published ones, at the paper's per-layer widths on DeiT.

    python benchmarks/snp_parity.py [--json] [--model deit_tiny ...] [--no-onnx]

Widths for DeiT come from data/snp_kept.json (kept embedding, query/key and value dimensions of each head, hidden neurons). Those for
EfficientFormer-L1 are not published; it is cut to half of its MACs by one ratio for all layers.
Weights are random: the sizes do not depend on them. With ``--json``, one line a model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

import secateur as sc

KEPT = Path(__file__).parent / "data" / "snp_kept.json"
EFFICIENTFORMER = {"architecture": "efficientformer_l1", "macs": 0.5, "published": {"gmacs": 0.6}}


def ratios(study: sc.Study, kept: Mapping[str, Any]) -> dict[str, float]:
    """The fraction removed of each layer, in the order of the blocks; half a channel is added so that flooring cannot lose one."""
    attention = {kind: [layer for layer in study.layers if layer.name.endswith(f".attn.{kind}")] for kind in ("qk", "v")}
    hidden = [layer for layer in study.layers if layer.name.endswith(".mlp.fc1")]
    embedding = next(layer for layer in study.layers if layer.name.endswith(".add"))
    out = {embedding.name: _removed(embedding.channels, kept["embedding"])}
    for layers, counts in ((attention["qk"], kept["qk"]), (attention["v"], kept["v"]), (hidden, kept["fc1"])):
        for layer, count in zip(layers, counts, strict=True):
            width = int(layer.layout.rpartition("x")[2])
            out[layer.name] = _removed(width, count)
    return out


def _removed(width: int, kept: int) -> float:
    return (width - kept + 0.5) / width


def own_indices(plan: sc.Plan, study: sc.Study) -> bool:
    """Whether some head lost other indices than its neighbour, in every query/key and value layer."""
    layers = {layer.name: layer for layer in study.layers}
    for edit in plan.prunes:
        if edit.group.endswith((".qk", ".v")):
            width = int(layers[edit.group].layout.rpartition("x")[2])
            heads = {tuple(i % width for i in edit.remove if i // width == head) for head in range(edit.size // width)}
            if len(heads) == 1:
                return False
    return True


def compare(name: str, kept: Mapping[str, Any], *, onnx: bool) -> dict[str, Any]:
    """Prune one model to the paper's widths, or to its part of the MACs, and measure it."""
    torch.manual_seed(0)
    model = timm.create_model(kept["architecture"]).eval()
    images = torch.randn(2, 3, 224, 224)
    study = sc.study(model, images[:1])
    wish = {"target": sc.Target(macs=kept["macs"])} if "macs" in kept else {"ratios": ratios(study, kept)}
    plan = study.plan(sc.SNP(), **wish, data=images, options=sc.Options(layer_norm="tss_norm"))
    result = sc.apply(study, plan, prefer="graph")
    row = {
        "name": name,
        "params_m": result.after.parameters / 1e6,
        "gmacs": result.after.macs / 1e9,
        "proof_error": result.proof.error,
        "dense_params_m": result.before.parameters / 1e6,
        "dense_gmacs": result.before.macs / 1e9,
        "published_params_m": kept["published"].get("params_m"),
        "published_gmacs": kept["published"]["gmacs"],
        "indices_differ_per_head": own_indices(plan, study),
    }
    if onnx:
        with tempfile.TemporaryDirectory() as folder:
            row["onnx_agrees"] = (result.save(Path(folder) / "out", onnx=True) / "model.onnx").exists()
    return row


def main() -> None:
    """Compare all models, and print a table or lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = json.loads(KEPT.read_text()) | {"efficientformer_l1": EFFICIENTFORMER}
    parser.add_argument("--model", action="append", choices=list(models), help="only this one (repeatable)")
    parser.add_argument("--json", action="store_true", help="one line of JSON a model")
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX export and its check out")
    options = parser.parse_args()
    for name in options.model or models:
        row = compare(name, models[name], onnx=not options.no_onnx)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        parameters = f"{row['params_m']:.3f} M (published {row['published_params_m'] or 'nowhere'})"
        sizes = f"{parameters}, {row['gmacs']:.4f} GMACs (published {row['published_gmacs']})"
        more = f"ONNX {'agrees' if row.get('onnx_agrees') else 'not checked'}, own indices per head {row['indices_differ_per_head']}"
        print(f"{name}: {sizes}, proof error {row['proof_error']:.1e}, {more}", flush=True)


if __name__ == "__main__":
    main()
