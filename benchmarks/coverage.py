"""Cut every group of many architectures to half, and check all that a user relies on. Each model in a process of its own.

    python benchmarks/coverage.py                          # the default list; results in benchmarks/results/coverage.jsonl
    python benchmarks/coverage.py torchvision:resnet18 timm:deit_tiny_patch16_224 --jobs 2
    python benchmarks/coverage.py --list models.txt --seconds 600 --memory-gib 12
    python benchmarks/coverage.py --write docs/coverage.md # the table of what is in the results

Finished models are not run again (``--again`` does so). A model is named ``torchvision:NAME``, ``timm:NAME`` or ``hf:NAME``,
with an optional image size as in ``timm:levit_128s@224``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
TORCHVISION = (
    "alexnet vgg16_bn@64 resnet18@64 resnet50@64 resnext50_32x4d@64 wide_resnet50_2@64 densenet121@64 googlenet@96 inception_v3@299 "
    "squeezenet1_1@64 mobilenet_v2@64 mobilenet_v3_large@64 shufflenet_v2_x1_0@64 mnasnet1_0@64 efficientnet_b0@64 efficientnet_v2_s@64 "
    "regnet_y_400mf@64 convnext_tiny@64 vit_b_16@224 swin_t@64 swin_v2_t@64 maxvit_t@224 deeplabv3_resnet50@64 fcn_resnet50@64 "
    "lraspp_mobilenet_v3_large@64"
)
TIMM = (
    "deit_tiny_patch16_224@224 beit_base_patch16_224@224 levit_128s@224 cait_xxs24_224@224 mixer_s32_224@224 xcit_nano_12_p16_224@224 "
    "pvt_v2_b0@64 twins_pcpvt_small@224 hrnet_w18_small@64 res2net50_26w_4s@64 resnest14d@64 nfnet_f0@64 ghostnet_100@64 "
    "edgenext_xx_small@64 efficientformer_l1@224 poolformer_s12@64 repvgg_a2@64 halonet26t@256 coat_lite_tiny@224 mobilevit_xxs@64"
)
TRANSFORMERS = "bert vit gpt2 llama t5 whisper"
DEFAULT = (
    *(f"torchvision:{name}" for name in TORCHVISION.split()),
    *(f"timm:{name}" for name in TIMM.split()),
    *(f"hf:{name}" for name in TRANSFORMERS.split()),
)

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def build(name: str) -> tuple[Any, Inputs, Callable[[int], Inputs]]:
    """The model of that name with random weights, example inputs, and inputs of another batch size."""
    import torch

    torch.manual_seed(0)
    source, _, rest = name.partition(":")
    plain, _, size = rest.partition("@")
    if source == "hf":
        return _transformer(plain)
    if source == "timm":
        import timm

        model = timm.create_model(plain)
    else:
        import torchvision

        weights = {"weights_backbone": None} if any(w in plain for w in ("deeplab", "fcn_", "lraspp")) else {}
        more = {"init_weights": False} if plain in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(plain, weights=None, **weights, **more)

    def inputs(batch: int) -> Inputs:
        return (torch.randn(batch, 3, int(size or 224), int(size or 224)),), {}

    return model.eval(), inputs(2), inputs


def _transformer(name: str) -> tuple[Any, Inputs, Callable[[int], Inputs]]:
    import torch
    import transformers as t

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}
    text = {"num_heads": 4, "num_layers": 2, "d_model": 64, "d_ff": 128, "d_kv": 16, "vocab_size": 100}
    speech = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: t.BertModel(t.BertConfig(**small)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**{**small, "image_size": 32, "patch_size": 8})),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100, bos_token_id=0, eos_token_id=1)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**small, num_key_value_heads=2)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**text)),
        "whisper": lambda: t.WhisperModel(
            t.WhisperConfig(d_model=64, vocab_size=100, num_mel_bins=16, max_source_positions=32, **speech, **tokens)
        ),
    }

    def inputs(batch: int) -> Inputs:
        ids = torch.randint(3, 100, (batch, 16))
        mask = torch.ones_like(ids)
        mask[-1, 10:] = 0
        by_name = {
            "bert": {"input_ids": ids, "attention_mask": mask},
            "vit": {"pixel_values": torch.randn(batch, 3, 32, 32)},
            "gpt2": {"input_ids": ids, "attention_mask": mask, "use_cache": False},
            "llama": {"input_ids": ids, "attention_mask": mask, "use_cache": False},
            "t5": {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False},
            "whisper": {"input_features": torch.randn(batch, 16, 64), "decoder_input_ids": ids, "use_cache": False},
        }
        return (), by_name[name]

    return makers[name]().eval(), inputs(2), inputs


def examine(name: str) -> dict[str, Any]:
    """Run one model through everything; each step is a column."""
    import secateur as sc

    model, inputs, other = build(name)
    row: dict[str, Any] = {"model": name}
    start = time.perf_counter()
    study = sc.study(model, inputs)
    row["captured"] = study.capture.how
    row["groups"] = sum(layer.prunable for layer in study.layers)
    row["prunable_parameters"], row["prunable_macs"] = study.layers.prunable_parameters, study.layers.prunable_macs
    row["without_rule"] = sorted(set(study.layers.unknown.values()))
    row["study_s"] = round(time.perf_counter() - start, 2)
    heads = 0.25 if any(layer.kind == "blocks" and layer.prunable for layer in study.layers) else None
    result = sc.apply(study, study.plan(sc.L2(), ratio=0.5, heads=heads))
    row["total_s"] = round(time.perf_counter() - start, 2)
    row |= {"kind": result.kind, "error": result.proof.error, "proven": result.proof.holds}
    row["parameters"] = result.after.parameters / result.before.parameters
    row["macs"] = result.after.macs / max(result.before.macs, 1)
    for column, step in (("batch", _other_batch), ("files", _files), ("step", _training_step)):
        row[column] = _outcome(lambda step=step: step(result, model, inputs, other))
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def _outcome(step: Callable[[], str]) -> str:
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a cell of the table
        return f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0][:200]}"


def _tensors(outputs: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor)]


def _other_batch(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """The result takes a batch of three; equal, for each sample, to what it gives for the first two alone."""
    import torch

    args, kwargs = other(3)
    with torch.no_grad():
        wanted = [tuple(x.shape) for x in _tensors(model(*args, **kwargs))]
        found = [tuple(x.shape) for x in _tensors(result.model.eval()(*args, **kwargs))]
    if wanted != found:
        raise AssertionError(f"output shapes {found} instead of {wanted}")
    return "yes"


def _files(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """Saved, loaded in a new process with equal outputs, ONNX agreed (the save checks it)."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        out = result.save(Path(folder) / "out")
        with torch.no_grad():
            torch.save(_tensors(result.model(*inputs[0], **inputs[1])), Path(folder) / "wanted.pt")
        torch.save(inputs, Path(folder) / "inputs.pt")
        transformed = type(model).__module__.startswith("transformers")
        script = "import sys; sys.path.insert(0, sys.argv[2]); import coverage; coverage.reload(sys.argv[1], sys.argv[3])"
        package = "transformers.modeling_outputs" if transformed else "torch"
        command = [sys.executable, "-c", script, folder, str(Path(__file__).parent), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError((done.stderr.strip().splitlines() or ["loading failed"])[-1])
        return "yes, with ONNX" if (out / "model.onnx").exists() else "yes, ONNX left out"


def reload(folder: str, package: str) -> None:
    """Load a saved directory, and compare its outputs with those kept beside it; ``package`` knows the types of the outputs."""
    import importlib

    import torch

    import secateur as sc

    importlib.import_module(package)
    args, kwargs = torch.load(Path(folder) / "inputs.pt", weights_only=False)
    wanted = torch.load(Path(folder) / "wanted.pt")
    with torch.no_grad():
        found = _tensors(sc.load(Path(folder) / "out")(*args, **kwargs))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(float(b.abs().max()), 1e-6))


def _training_step(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """One small step of gradient descent lowers a loss."""
    import torch

    small = result.model.train()
    try:
        batches = [m for m in small.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm | torch.nn.Dropout)]
        for layer in batches:
            layer.eval()
        parameters = [p for p in small.parameters() if p.requires_grad]

        def loss() -> Any:
            found = [x for x in _tensors(small(*inputs[0], **inputs[1])) if x.is_floating_point()]
            return sum((x.double() - 1).square().mean() for x in found)

        start = loss()
        before = float(start.detach())
        gradients = torch.autograd.grad(start, parameters, allow_unused=True)
        norm = sum(float(g.double().square().sum()) for g in gradients if g is not None)
        for rate in (1e-2, 1e-4, 1e-6):
            step = rate * before / max(norm, 1e-30)
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    if g is not None:
                        p.sub_(step * g)
                after = float(loss())
                if after < before:
                    return "yes"
                for p, g in zip(parameters, gradients, strict=True):
                    if g is not None:
                        p.add_(step * g)
        raise AssertionError(f"the loss stays at {before:.4g}")
    finally:
        small.eval()


def run(name: str, seconds: float, memory_gib: float) -> dict[str, Any]:
    """One model in its own process, within limits of time and memory."""
    limit = int(memory_gib * 2**30)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, preexec_fn=limited, check=False)
    except subprocess.TimeoutExpired:
        return {"model": name, "failure": f"took longer than {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"model": name, "failure": (lines or [f"exit code {done.returncode}"])[-1][:300]}


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The rows at hand, the last of each model."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {row["model"]: row for row in rows}


def passes(row: Mapping[str, Any]) -> bool:
    """Whether everything held."""
    return bool(row.get("proven")) and all(str(row.get(c, "")).startswith("yes") for c in ("batch", "files", "step"))


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown page."""
    whole = [r for r in rows if passes(r)]
    proven = [r for r in rows if r.get("proven")]
    yield "# Coverage\n"
    yield "Every group of each model cut to half by L2 norm, a quarter of the heads or groups removed whole. Made by"
    yield "`python benchmarks/coverage.py --write docs/coverage.md`.\n"
    yield f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {_version('torch')}.\n"
    yield f"**{len(rows)} models; {len(proven)} cut and proven equal to the masked dense model; {len(whole)} pass everything.**\n"
    yield (
        "| model | captured | prunable parameters | prunable MACs | left: parameters | left: MACs | result | proof error "
        "| other batch | saved, loaded, ONNX | training step | study s | with proof s | peak GiB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for r in rows:
        if "failure" in r:
            yield f"| {r['model']} | {_cell(r['failure'])} |" + " |" * 12
            continue
        shares = " | ".join(f"{r[c]:.0%}" for c in ("prunable_parameters", "prunable_macs", "parameters", "macs"))
        steps = " | ".join(_cell(str(r[c])) for c in ("batch", "files", "step"))
        cost = f"{r['study_s']} | {r['total_s']} | {r['peak_gib']}"
        yield f"| {r['model']} | {r['captured']} | {shares} | {r['kind']} | {r['error']:.0e} | {steps} | {cost} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def main() -> None:
    """Run what is missing, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models to run; by default a fixed list")
    parser.add_argument("--list", type=Path, help="a file with a model a line")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=900, help="limit for one model")
    parser.add_argument("--memory-gib", type=float, default=16, help="limit for one model")
    parser.add_argument("--again", action="store_true", help="run finished models again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the table of all results to this file")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.one)))
        return
    names = options.models or (options.list.read_text().split() if options.list else list(DEFAULT))
    done = finished(options.results)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    todo = [n for n in names if options.again or n not in done] if not options.write or options.models or options.list else []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda n: run(n, options.seconds, options.memory_gib), todo):
            done[row["model"]] = row
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = row["failure"] if "failure" in row else {k: row[k] for k in ("kind", "error", "batch", "files", "step")}
            print("ok  " if passes(row) else "FAIL", row["model"], said, flush=True)
    if options.write:
        rows = [done[n] for n in names if n in done] + [r for n, r in done.items() if n not in names]
        options.write.write_text("\n".join(table(rows)))


if __name__ == "__main__":
    main()
