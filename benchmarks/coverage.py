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
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zoo
from zoo import Inputs

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
CHECKS = ("inputs", "files", "step", "counter")
PROCESSES = multiprocessing.get_context("forkserver")
"""Processes begin as copies of one that has imported what takes long to import."""
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo", "torch.export", "torchvision", "timm", "secateur"])


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
    for column in checks:
        row[column] = _outcome(lambda step=STEPS[column]: step(result, model, inputs, other))
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
    heads = {
        m.qkv: m.num_heads for m in model.modules() if isinstance(getattr(m, "qkv", None), torch.nn.Module) and hasattr(m, "num_heads")
    }
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


def _other_inputs(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """The result gives for a batch of three, and for larger images or longer texts where the model takes them, what the model gives
    that is cut by the same plan with such inputs, and proven."""
    import torch

    import secateur as sc

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.no_grad():
            found = _tensors(result.model.eval()(*args, **kwargs))
            wanted = _tensors(sc.apply(sc.study(model, (args, kwargs)), result.plan).model(*args, **kwargs))
        _compare(found, wanted)

    check(*other(3))
    larger = _larger(model, inputs)
    if larger is None:
        return "yes"
    if not _runs(result.model, larger) and result.kind == "graph":
        return "yes, of one size"
    check(*larger)
    return "yes, size too"


def _larger(model: Any, inputs: Inputs) -> Inputs | None:
    """Images 32 pixels larger, texts four tokens longer; nothing where the model itself takes one size."""
    import torch
    from torch.utils import _pytree as pytree

    def grown(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.ndim == 4 and x.is_floating_point():
            return torch.randn(*x.shape[:2], x.shape[2] + 32, x.shape[3] + 32)
        if isinstance(x, torch.Tensor) and x.ndim == 2 and not x.is_floating_point():
            return torch.cat([x, x[:, :4]], dim=1)
        return x

    args, kwargs = pytree.tree_map(grown, inputs)
    changed = any(a.shape != b.shape for a, b in zip(_tensors(inputs), _tensors((args, kwargs)), strict=True))
    return (args, kwargs) if changed and _runs(model, (args, kwargs)) else None


def _runs(model: Any, inputs: Inputs) -> bool:
    import torch

    args, kwargs = inputs
    try:
        with torch.no_grad():
            model.eval()(*args, **kwargs)
    except Exception:  # noqa: BLE001 - a model that takes one size says so in its own way
        return False
    return True


def _compare(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    import torch

    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(float(b.abs().max()) if b.numel() else 0.0, 1e-6))


def _files(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """Saved, loaded in a new process, ONNX agreed (the save checks it); both files give what the result gives, for other inputs too."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        out = result.save(Path(folder) / "out")
        larger = _larger(model, inputs)
        sizes = {"size": larger} if larger is not None and _runs(result.model, larger) else {}
        for name, (args, kwargs) in {"same": inputs, "batch": other(3), **sizes}.items():
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

    What takes no other batch or size is printed.
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
        for what in ("batch", "size"):
            if (Path(folder) / f"{what}.inputs.pt").exists():
                closed = [name for name, step in check(what) if _outcome(lambda step=step: step() or "") != ""]
                print(f"; no other {what}: {', '.join(closed)}" if closed else f", any {what}", end="")


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


def _torchs_counter(result: Any, model: Any, inputs: Inputs, other: Callable[[int], Inputs]) -> str:
    """Our MACs are half of the operations that torch counts, where its kernels are of those that it knows."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    args, kwargs = inputs
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for p in trained:
            p.requires_grad_(False)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for p in trained:
            p.requires_grad_(True)
    wanted = counter.get_total_flops() / 2
    assert abs(result.before.macs - wanted) <= 1e-6 * wanted, f"{result.before.macs / max(wanted, 1):.4f} times torch's"
    return "yes"


STEPS = {"inputs": _other_inputs, "files": _files, "step": _training_step, "counter": _torchs_counter}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in its own process, and the peer in another, within limits of time and memory."""
    checks = {"all": CHECKS, "proof": ()}.get(options.checks, (options.checks,))
    row = {"model": name} | ({} if options.checks == "peer" else _limited(examine, (name, checks), options))
    if options.checks == "peer" or (options.peer and "failure" not in row):
        found = _limited(examine_peer, (name,), options)
        row |= {"peer": found["failure"]} if "failure" in found else found
    return row


def _limited(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], options: argparse.Namespace) -> dict[str, Any]:
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send, args=(there, int(options.memory_gib * 2**30), work, arguments))
    process.start()
    there.close()
    try:
        if not here.poll(options.seconds):
            return {"failure": f"took longer than {options.seconds:.0f} s"}
        return dict(here.recv())
    except EOFError:
        process.join()
        return {"failure": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send(pipe: Connection, limit: int, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        found = work(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever ends a model is its row
        found = {"failure": (traceback.format_exception_only(error)[-1].strip().splitlines() or [repr(error)])[-1][:300]}
    pipe.send(found)


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The rows at hand; of each model what was found last."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found[row["model"]] = found.get(row["model"], {}) | row
    return found


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
        "| other inputs | saved, loaded, ONNX | training step | MACs as torch counts | study s | with proof s | peak GiB "
        "| torch-pruning: left |"
    )
    yield "|---" * 16 + "|"
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
        return f"| {r['model']} | {_cell(r['failure'])} |" + " |" * 14
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
    parser.add_argument("--checks", choices=("all", "proof", "peer", *CHECKS), default="all", help="what to run after the proof")
    parser.add_argument("--peer", action="store_true", help="cut each model with torch-pruning too")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=900, help="limit for one model")
    parser.add_argument("--memory-gib", type=float, default=16, help="limit for one model")
    parser.add_argument("--again", action="store_true", help="run finished models again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the table of all results to this file")
    _run_all(parser.parse_args())


def _run_all(options: argparse.Namespace) -> None:
    names = [*options.models, *(options.list.read_text().split() if options.list else []), *(n for s in options.set for n in zoo.SETS[s]())]
    done = finished(options.results)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    only_write = options.write and not names
    names = list(dict.fromkeys(names or zoo.core()))
    column = "peer" if options.checks == "peer" else "model"
    todo = [] if only_write else [n for n in names if options.again or column not in done.get(n, {})]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(partial(run, options=options), todo):
            done[row["model"]] = done.get(row["model"], {}) | row
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = row.get("failure") or {k: row[k] for k in ("kind", "error", *CHECKS, "peer") if k in row}
            print("ok  " if passes(done[row["model"]]) else "FAIL", row["model"], said, flush=True)
    if options.write:
        rows = [done[n] for n in names if n in done] + [r for n, r in done.items() if n not in names]
        options.write.write_text("\n".join(table(rows)))


if __name__ == "__main__":
    main()
