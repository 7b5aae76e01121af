"""A sample of real architectures, cut to half: what comes out is kept in `data/sample.json`, so that a change shows as a difference.

`python tests/sample.py` writes the file anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "data" / "sample.json"
MODELS = (
    "torchvision:squeezenet1_1@64",
    "torchvision:mobilenet_v3_small@64",
    "torchvision:shufflenet_v2_x0_5@64",
    "torchvision:lraspp_mobilenet_v3_large@64",
    "torchvision:ssdlite320_mobilenet_v3_large@96",
    "timm:ghostnet_050@64",
    "timm:convnextv2_atto@64",
    "timm:repghostnet_050@64",
    "timm:edgenext_xx_small@64",
    "timm:vit_tiny_r_s16_p8_224@224",
    "hf:albert",
    "hf:gpt2",
    "hf:llama",
    "hf:mixtral",
    "hf:segformer",
    "hf:swinv2",
    "hf:t5",
    "hf:whisper",
)


def outcome(name: str) -> dict[str, Any]:
    """Cut every group of a model to half, a quarter of the heads whole, and say what is left."""
    import torch

    import secateur as sc
    import zoo

    torch.manual_seed(0)
    model, inputs, _ = zoo.build(name)
    study = sc.study(model, inputs)
    heads = 0.25 if any(layer.kind == "blocks" and layer.prunable for layer in study.layers) else None
    result = sc.apply(study, study.plan(ratio=0.5, heads=heads))
    assert result.proof.holds
    return {
        "result": result.kind,
        "prunable parameters": round(study.layers.prunable_parameters, 3),
        "parameters left": round(result.after.parameters / result.before.parameters, 3),
        "without a rule": sorted(set(study.layers.unknown.values())),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps({name: outcome(name) for name in MODELS}, indent=1) + "\n")
