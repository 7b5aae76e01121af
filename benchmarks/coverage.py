"""Cut every group of many architectures to half, and check all that a user relies on. Each model in a process of its own.

    python benchmarks/coverage.py                          # the set `core`; results in benchmarks/results/coverage.jsonl
    python benchmarks/coverage.py --set torchvision --set timm-families --set transformers --set others --checks proof --peer
    python benchmarks/coverage.py torchvision:resnet18 timm:deit_tiny_patch16_224 --jobs 2
    python benchmarks/coverage.py --list models.txt --seconds 600 --memory-gib 12
    python benchmarks/coverage.py --write docs/coverage.md # the table of what is in the results

Finished models are not run again (`--again` does so). Models are named as in `zoo.py`, which also holds the sets. With
`--checks proof` files, ONNX and training are left out; with `--peer` torch-pruning cuts the same model in a process of its own.
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
from functools import partial
from pathlib import Path
from typing import Any

import zoo
from zoo import Inputs

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
CHECKS = ("batch", "files", "step")


def examine(name: str, checks: Sequence[str] = CHECKS) -> dict[str, Any]:
    """Run one model through everything; each step is a column."""
    import secateur as sc

    model, inputs, other = zoo.build(name)
    row: dict[str, Any] = {"model": name}
    start = time.perf_counter()
    study = sc.study(model, inputs)
    row["captured"] = study.capture.how
    row["groups"] = sum(layer.prunable for layer in study.layers)
    row["prunable_parameters"], row["prunable_macs"] = study.layers.prunable_parameters, study.layers.prunable_macs
    row["without_rule"] = sorted(set(study.layers.unknown.values()))
    row["held"] = _held(study)
    row["nodes"] = sum(node.op == "call_function" for node in study.capture.graph.nodes)
    row["study_s"] = round(time.perf_counter() - start, 2)
    heads = 0.25 if any(layer.kind == "blocks" and layer.prunable for layer in study.layers) else None
    result = sc.apply(study, study.plan(sc.L2(), ratio=0.5, heads=heads))
    row["total_s"] = round(time.perf_counter() - start, 2)
    row |= {"kind": result.kind, "error": result.proof.error, "proven": result.proof.holds}
    row["parameters"] = result.after.parameters / result.before.parameters
    row["macs"] = result.after.macs / max(result.before.macs, 1)
    steps = {"batch": _other_batch, "files": _files, "step": _training_step}
    for column in checks:
        row[column] = _outcome(lambda step=steps[column]: step(result, model, inputs, other))
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def _held(study: Any) -> dict[str, float]:
    """The share of the parameters that cannot go, by reason, the largest first; several reasons may hold one weight."""
    import torch

    sizes = {name: t.numel() for name, t in study.weights.items() if isinstance(t, torch.nn.Parameter)}
    kept, reasons = dict.fromkeys(sizes, 1.0), {name: set() for name in sizes}
    for each in study.coverage.dimensions:
        if each.tensor in sizes:
            kept[each.tensor] *= 1 - each.prunable / each.size
            reasons[each.tensor] |= {each.reason.partition(" (node")[0]} if each.reason else set()
    shares = {
        text: sum(kept[n] * sizes[n] for n in sizes if text in reasons[n]) / sum(sizes.values()) for text in set().union(*reasons.values())
    }
    return {text: round(share, 4) for text, share in sorted(shares.items(), key=lambda x: -x[1]) if share > 0.005}


def examine_peer(name: str) -> dict[str, Any]:
    """Cut the same model with torch-pruning, with the settings of its examples: half of every layer, the last one left alone."""
    import torch
    import torch_pruning as tp

    model, (args, kwargs), _ = zoo.build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    before, start = sum(p.numel() for p in model.parameters()), time.perf_counter()
    with torch.no_grad():
        wanted = [tuple(x.shape) for x in _tensors(model(*args, **kwargs))]
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd)]
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    pruner = tp.pruner.MagnitudePruner(
        model,
        kwargs if kwargs else args,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=layers[-1:],
        num_heads=heads,
    )
    pruner.step()
    for module in [m for m in model.modules() if getattr(m, "qkv", None) in heads]:
        module.num_heads = pruner.num_heads[module.qkv]
        module.head_dim = module.attn_dim = module.qkv.out_features // 3
        module.head_dim //= module.num_heads
    with torch.no_grad():
        found = [tuple(x.shape) for x in _tensors(model(*args, **kwargs))]
    left = sum(p.numel() for p in model.parameters()) / before
    cause = "" if found == wanted else f"output shapes {found} instead of {wanted}"
    return {"peer": cause or ("yes" if left < 1 else "nothing was cut"), "peer_left": left, "peer_s": round(time.perf_counter() - start, 2)}


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
    """The result gives for a batch of three what the model gives that is cut by the same plan with such a batch, and proven."""
    import torch

    import secateur as sc

    args, kwargs = other(3)
    with torch.no_grad():
        found = _tensors(result.model.eval()(*args, **kwargs))
        wanted = _tensors(sc.apply(sc.study(model, (args, kwargs)), result.plan).model(*args, **kwargs))
    _compare(found, wanted)
    return "yes"


def _compare(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    import torch

    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(float(b.abs().max()) if b.numel() else 0.0, 1e-6))


def _files(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """Saved, loaded in a new process, ONNX agreed (the save checks it); both files give what the result gives, for another batch too."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        out = result.save(Path(folder) / "out")
        for name, (args, kwargs) in {"same": inputs, "other": other(3)}.items():
            with torch.no_grad():
                torch.save(_tensors(result.model(*args, **kwargs)), Path(folder) / f"{name}.wanted.pt")
            torch.save((args, kwargs), Path(folder) / f"{name}.inputs.pt")
        transformed = type(model).__module__.startswith("transformers")
        script = "import sys; sys.path.insert(0, sys.argv[2]); import coverage; coverage.reload(sys.argv[1], sys.argv[3])"
        package = type(model).__module__ if transformed else "torch"
        command = [sys.executable, "-c", script, folder, str(Path(__file__).parent), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError((done.stderr.strip().splitlines() or ["loading failed"])[-1])
        left_out = json.loads((out / "plan.json").read_text())["left_out"]
        if left_out:
            raise AssertionError(f"saved and loaded, but {'; '.join(f'no {name}: {why}' for name, why in left_out.items())}")
        return f"yes, with ONNX{done.stdout.strip()}"


def reload(folder: str, package: str) -> None:
    """Load a saved directory, and compare its outputs with those kept beside it; ``package`` knows their types and its operators.

    What takes no other batch is printed.
    """
    import importlib

    import torch

    from secateur.capture.export import tensor_inputs
    from secateur.capture.onnx.check import Session
    from secateur.export.pt2 import read_program

    importlib.import_module(package)
    saved, file = read_program(Path(folder) / "out" / "model.pt2"), Path(folder) / "out" / "model.onnx"
    program, session = saved.module(), Session(file) if file.exists() else None

    def check(name: str) -> Iterator[tuple[str, Callable[[], None]]]:
        args, kwargs = torch.load(Path(folder) / f"{name}.inputs.pt", weights_only=False)
        wanted = torch.load(Path(folder) / f"{name}.wanted.pt")
        yield "model.pt2", lambda: _compare(_tensors(program(*args, **kwargs)), wanted)
        if session is not None:
            feeds = dict(zip(tensor_inputs(saved), _tensors((args, kwargs)), strict=True))
            yield "model.onnx", lambda: _compare(session(feeds), wanted)

    with torch.no_grad():
        for _, step in check("same"):
            step()
        closed = [name for name, step in check("other") if _outcome(lambda step=step: step() or "") != ""]
    print(f"; no other batch: {', '.join(closed)}" if closed else ", any batch")


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


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in its own process, and the peer in another, within limits of time and memory."""
    row = {"model": name} | _limited(["--one", name, "--checks", options.checks], options)
    if options.peer and "failure" not in row:
        found = _limited(["--one-peer", name], options)
        row |= {"peer": found["failure"]} if "failure" in found else found
    return row


def _limited(arguments: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    limit = int(options.memory_gib * 2**30)
    command = [sys.executable, __file__, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=options.seconds,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {options.seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return dict(json.loads(lines[-1]))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failure": (lines or [f"exit code {done.returncode}"])[-1][:300]}


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The rows at hand, the last of each model."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {row["model"]: row for row in rows}


def passes(row: Mapping[str, Any]) -> bool:
    """Whether everything held."""
    return bool(row.get("proven")) and all(str(row.get(c, "yes")).startswith("yes") for c in CHECKS)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown page."""
    whole = [r for r in rows if passes(r)]
    proven = [r for r in rows if r.get("proven")]
    peers = [r for r in rows if "peer" in r]
    yield "# Coverage\n"
    yield "Every group of each model cut to half by L2 norm, a quarter of the heads or groups removed whole. Made by"
    yield "`python benchmarks/coverage.py --write docs/coverage.md`; weights are random. A dash stands for what was not run.\n"
    yield f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {_version('torch')}.\n"
    yield f"**{len(rows)} models; {len(proven)} cut and proven equal to the masked dense model; {len(whole)} pass all that was run.**\n"
    for source in dict.fromkeys(r["model"].partition(":")[0] for r in rows):
        own = [r for r in rows if r["model"].startswith(f"{source}:")]
        wide = sum(r.get("prunable_parameters", 0) >= 0.9 for r in own)
        yield (
            f"- {source}: {len(own)} models, {sum(bool(r.get('proven')) for r in own)} proven, {wide} with at least 90 % of their "
            f"parameters in layers that can be cut."
        )
    if peers:
        ran = sum(r["peer"] == "yes" for r in peers)
        yield (
            f"- torch-pruning {_version('torch-pruning')} on {len(peers)} of these: {ran} were cut and still run with outputs of the same "
            f"shape (whether they compute the same is not checked here)."
        )
    yield from _why_less(rows)
    yield from _slowest(rows)
    yield ""
    yield (
        "| model | captured | prunable parameters | prunable MACs | left: parameters | left: MACs | result | proof error "
        "| other batch | saved, loaded, ONNX | training step | study s | with proof s | peak GiB | torch-pruning: left |"
    )
    yield "|---" * 15 + "|"
    for r in rows:
        yield _line(r)
    yield ""


def _why_less(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What keeps more than a tenth of a model's parameters whole, by reason, where the rows tell."""
    less = [r for r in rows if r.get("held") and r.get("prunable_parameters", 1) < 0.9]
    by_reason: dict[str, list[str]] = {}
    for r in less:
        reason, share = next(iter(r["held"].items()))
        by_reason.setdefault(reason, []).append(f"{r['model']} ({share:.0%})")
    if by_reason:
        yield "\nWhere less than 90 % of the parameters can be cut, what holds most of the rest, with its share:\n"
        yield from (f"- {reason}: {', '.join(models)}" for reason, models in by_reason.items())


def _slowest(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The ten rows that took longest, with the part of it that is capture and analysis."""
    timed = sorted((r for r in rows if "total_s" in r), key=lambda r: -r["total_s"])[:10]
    if timed:
        yield "\nThe ten that took longest, from capture to proof (of a graph also `torch.export` and a second analysis):\n"
        yield from (f"- {r['model']}: {r['total_s']} s, {r['study_s']} s of them capture and analysis; {r['kind']}" for r in timed)
        yield "\nHow analysis and rewriting scale by themselves is in [Scaling](scaling.md)."


def _line(r: Mapping[str, Any]) -> str:
    if "failure" in r:
        return f"| {r['model']} | {_cell(r['failure'])} |" + " |" * 13
    shares = " | ".join(f"{r[c]:.0%}" for c in ("prunable_parameters", "prunable_macs", "parameters", "macs"))
    steps = " | ".join(_cell(str(r.get(c, "-"))) for c in CHECKS)
    peer = "-" if "peer" not in r else f"{r['peer_left']:.0%}" if r["peer"] == "yes" else _cell(r["peer"][:120])
    return (
        f"| {r['model']} | {r['captured']} | {shares} | {r['kind']} | {r['error']:.0e} | {steps} "
        f"| {r['study_s']} | {r['total_s']} | {r['peak_gib']} | {peer} |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def main() -> None:
    """Run what is missing, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models to run; by default the set `core`")
    parser.add_argument("--set", action="append", choices=list(zoo.SETS), default=[], help="a set of models (repeatable)")
    parser.add_argument("--list", type=Path, help="a file with a model a line")
    parser.add_argument("--checks", choices=("all", "proof"), default="all", help="what to run after the proof")
    parser.add_argument("--peer", action="store_true", help="cut each model with torch-pruning too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--one-peer", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=900, help="limit for one model")
    parser.add_argument("--memory-gib", type=float, default=16, help="limit for one model")
    parser.add_argument("--again", action="store_true", help="run finished models again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the table of all results to this file")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.one, CHECKS if options.checks == "all" else ())))
        return
    if options.one_peer:
        print(json.dumps(examine_peer(options.one_peer)))
        return
    _run_all(options)


def _run_all(options: argparse.Namespace) -> None:
    names = [*options.models, *(options.list.read_text().split() if options.list else []), *(n for s in options.set for n in zoo.SETS[s]())]
    done = finished(options.results)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    only_write = options.write and not names
    names = list(dict.fromkeys(names or zoo.core()))
    todo = [] if only_write else [n for n in names if options.again or n not in done]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(partial(run, options=options), todo):
            done[row["model"]] = row
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = row["failure"] if "failure" in row else {k: row[k] for k in ("kind", "error", *CHECKS, "peer") if k in row}
            print("ok  " if passes(row) else "FAIL", row["model"], said, flush=True)
    if options.write:
        rows = [done[n] for n in names if n in done] + [r for n, r in done.items() if n not in names]
        options.write.write_text("\n".join(table(rows)))


if __name__ == "__main__":
    main()
