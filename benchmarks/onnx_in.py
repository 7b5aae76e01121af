"""Read ONNX files, cut every group to half, prove it, and write ONNX again. Each file in a process of its own.

    python benchmarks/onnx_in.py                           # the set `core`, exported by PyTorch at opset 18, and the real files
    python benchmarks/onnx_in.py torchvision:resnet18@64 rapidocr:PP-OCRv6_det_small --exporter old --opset 13
    python benchmarks/onnx_in.py --checks load --peer      # only who can read what: this importer, and onnx2torch
    python benchmarks/onnx_in.py --write docs/onnx-files.md

Models are named as in `zoo.py`; `rapidocr:NAME` and `silero:NAME` are files inside of the PyPI packages `rapidocr` and
`silero-vad`, which are looked for and not imported. With `--keep FOLDER` exported files stay there and are used again. Finished
rows are not run again; results are in `benchmarks/results/onnx_in.jsonl`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zoo

RESULTS = Path(__file__).parent / "results" / "onnx_in.jsonl"
# Sizes for the real files, by the file's names of inputs; single numbers are values that an input is fixed to.
_VOICE = {"input": (1, 576), "state": (2, 1, 128)}
REAL: dict[str, dict[str, Any]] = {
    "rapidocr:PP-OCRv6_det_small": {"x": (1, 3, 64, 64)},
    "rapidocr:PP-OCRv6_rec_small": {"x": (1, 3, 48, 96)},
    "rapidocr:ch_ppocr_mobile_v2.0_cls_mobile": {"x": (1, 3, 48, 192)},
    "silero:silero_vad": {**_VOICE, "sr": 16000},
    "silero:silero_vad_16k_op15": {**_VOICE, "sr": 16000},
    "silero:silero_vad_16k_sequence": {"input": (3, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    "silero:silero_vad_half": _VOICE,
    "silero:silero_vad_op18_ifless": {**_VOICE, "sr": 16000},
    "silero:silero_vad_openvino_16k": _VOICE,
}
_FOLDERS = {"rapidocr": ("rapidocr", "models"), "silero": ("silero_vad", "data")}


def file_of(name: str, options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any], float]:
    """The file, what is given for its inputs, and the seconds that exporting it took."""
    if name in REAL:
        package, inside = _FOLDERS[name.partition(":")[0]]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{name}: the package {package} is not installed")
        return Path(spec.submodule_search_locations[0]) / inside / f"{name.partition(':')[2]}.onnx", REAL[name], 0.0
    path = folder / f"{options.exporter}{options.opset}" / f"{name.replace(':', '_')}.onnx"
    start = time.perf_counter()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _export(name, path, options)
    return path, {}, time.perf_counter() - start


def _export(name: str, path: Path, options: argparse.Namespace) -> None:
    import torch

    model, (args, kwargs), _ = zoo.build(name)
    if hasattr(model, "config") and kwargs.pop("use_cache", None) is not None:
        model.config.use_cache = False
    more: dict[str, Any] = {"dynamo": False} if options.exporter == "old" else {"dynamo": True, "verbose": False, "external_data": False}
    try:
        torch.onnx.export(model, args, str(path), kwargs=kwargs or None, opset_version=options.opset, **more)
    except Exception as error:
        path.unlink(missing_ok=True)
        raise SystemExit(f"PyTorch cannot export it: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}") from error


def examine(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One file through everything; each step is a column."""
    import torch

    import secateur as sc

    with tempfile.TemporaryDirectory() as scratch:
        path, given, seconds = file_of(name, options, options.keep or Path(scratch))
        row: dict[str, Any] = {"model": name, "exporter": "" if name in REAL else f"{options.exporter}{options.opset}"}
        row |= {"export_s": round(seconds, 1), "mib": round(path.stat().st_size / 2**20, 1)}
        start = time.perf_counter()
        fixed = {key: value for key, value in given.items() if isinstance(value, int)}
        generator = torch.Generator().manual_seed(0)
        inputs = {key: torch.randn(value, generator=generator) for key, value in given.items() if not isinstance(value, int)}
        model = sc.load_onnx(path, inputs=inputs or None, fixed=fixed)
        row["load_s"] = round(time.perf_counter() - start, 2)
        if options.checks != "load":
            row |= cut(model, inputs or model.examples(), Path(scratch) / "out")
        if options.peer:
            row["peer"] = _peer(path, inputs, model)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def cut(model: Any, inputs: Any, out: Path) -> dict[str, Any]:
    """Half of every group away, proven, saved, and the saved ONNX file read again."""
    import secateur as sc

    start = time.perf_counter()
    study = sc.study(model, inputs)
    row: dict[str, Any] = {"prunable_parameters": study.layers.prunable_parameters, "prunable_macs": study.layers.prunable_macs}
    heads = 0.25 if any(layer.kind == "blocks" and layer.prunable for layer in study.layers) else None
    result = sc.apply(study, study.plan(sc.L2(), ratio=0.5, heads=heads))
    row |= {"kind": result.kind, "error": result.proof.error, "proven": result.proof.holds}
    row["parameters"] = result.after.parameters / result.before.parameters
    row["macs"] = result.after.macs / max(result.before.macs, 1)
    row["cut_s"] = round(time.perf_counter() - start, 1)
    result.save(out)
    left = json.loads((out / "plan.json").read_text())["left_out"]
    row["pt2"] = left.get("model.pt2", "yes")
    row["onnx"] = left.get("model.onnx") or _again(model, out / "model.onnx", result)
    row["total_s"] = round(time.perf_counter() - start, 1)
    return row


def _again(model: Any, path: Path, result: Any) -> str:
    import secateur as sc

    try:
        again = sc.load_onnx(path, inputs=(result.args, dict(result.kwargs)))
    except sc.SecateurError as error:
        return f"yes, not read again: {str(error).splitlines()[0][:150]}"
    same = list(again.file_names.inputs.values()) == list(model.file_names.inputs.values())
    return "yes" if same and again.file_names.outputs == model.file_names.outputs else "yes, other names"


def _peer(path: Path, inputs: Mapping[str, Any], model: Any) -> str:
    """What onnx2torch makes of the file: whether its model gives what ONNX Runtime gives."""
    import onnx2torch
    import torch

    from secateur.capture.onnx import Session, compare

    given = list(inputs.values()) if inputs else list(model.examples())
    run = Session(path)
    try:
        peer = onnx2torch.convert(str(path)).eval()
        with torch.no_grad():
            found = peer(*given)
        for name, one, other in zip(
            run.outputs, found if isinstance(found, list | tuple) else (found,), run(_feeds(model, given)), strict=True
        ):
            compare(name, one, other)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a cell of the table
        return f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0][:120]}"
    return "yes"


def _feeds(model: Any, given: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(model.file_names.inputs.values(), given, strict=True))


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One file in its own process, within limits of time and memory."""
    limit = int(options.memory_gib * 2**30)
    same = ["--exporter", options.exporter, "--opset", str(options.opset), "--checks", options.checks]
    same += [*(["--keep", str(options.keep)] if options.keep else []), *(["--peer"] if options.peer else [])]
    base = {"model": name, "exporter": "" if name in REAL else f"{options.exporter}{options.opset}"}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, *same],
            capture_output=True,
            text=True,
            timeout=options.seconds,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {**base, "failure": f"took longer than {options.seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return dict(json.loads(lines[-1]))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {**base, "failure": (lines or [f"exit code {done.returncode}"])[-1][:300]}


def finished(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows at hand, the last of each file."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []
    return {(row["model"], row["exporter"]): row for row in rows}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown page."""
    exported = [r for r in rows if not str(r.get("failure", "")).startswith("PyTorch cannot export")]
    read = [r for r in exported if "load_s" in r]
    proven = [r for r in read if r.get("proven")]
    back = [r for r in proven if str(r.get("onnx", "")) == "yes"]
    yield "# ONNX files\n"
    yield "Files read by `sc.load_onnx` and compared with ONNX Runtime, every group cut to half by L2 norm (a quarter of the heads whole),"
    yield "proven, saved, and the saved `model.onnx` read and compared again. Weights of exported models are random. Made by"
    yield "`python benchmarks/onnx_in.py --write docs/onnx-files.md`.\n"
    yield f"Machine: {platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, onnxruntime {version('onnxruntime')}.\n"
    yield (
        f"**{len(rows)} files: PyTorch exports {len(exported)}; of these {len(read)} are read and agree with ONNX Runtime, "
        f"{len(proven)} cut and proven, {len(back)} written as ONNX again under the same names.**\n"
    )
    yield (
        "| file | exporter | MiB | read s | prunable parameters | left: parameters | left: MACs | result | proof error "
        "| .pt2 | ONNX again | total s |"
    )
    yield "|---" * 12 + "|"
    for row in rows:
        yield _line(row)
    yield ""


def _line(r: Mapping[str, Any]) -> str:
    start = f"| {r['model']} | {r['exporter']} |"
    if "failure" in r:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(r["failure"]))
        return f"{start} {plain.replace('|', '/')} |" + " |" * 9
    if "kind" not in r:
        return f"{start} {r['mib']} | {r['load_s']} |" + " - |" * 8
    shares = " | ".join(f"{r[c]:.0%}" for c in ("prunable_parameters", "parameters", "macs"))
    files = " | ".join(str(r[c]).replace("|", "/")[:160] for c in ("pt2", "onnx"))
    return f"{start} {r['mib']} | {r['load_s']} | {shares} | {r['kind']} | {r['error']:.0e} | {files} | {r['total_s']} |"


def main() -> None:
    """Run what is missing, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models and files to run; by default the set `core` and the real files")
    parser.add_argument("--exporter", choices=("dynamo", "old"), default="dynamo", help="which of PyTorch's exporters writes the files")
    parser.add_argument("--opset", type=int, default=18)
    parser.add_argument("--checks", choices=("all", "load"), default="all", help="stop after reading with `load`")
    parser.add_argument("--peer", action="store_true", help="read each file with onnx2torch too")
    parser.add_argument("--keep", type=Path, help="a folder in which exported files stay")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=900, help="limit for one file")
    parser.add_argument("--memory-gib", type=float, default=16, help="limit for one file")
    parser.add_argument("--again", action="store_true", help="run finished rows again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the table of all results to this file")
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(examine(options.one, options)))
        return
    _run_all(options)


def _run_all(options: argparse.Namespace) -> None:
    done = finished(options.results)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    names = [] if options.write and not options.models else options.models or [*REAL, *zoo.core()]
    kind = f"{options.exporter}{options.opset}"
    todo = [name for name in names if options.again or (name, "" if name in REAL else kind) not in done]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(partial(run, options=options), todo):
            done[row["model"], row["exporter"]] = row
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = row.get("failure") or {key: row[key] for key in ("load_s", "kind", "error", "pt2", "onnx", "peer") if key in row}
            print(row["model"], said, flush=True)
    if options.write:
        options.write.write_text("\n".join(table(list(done.values()))))


if __name__ == "__main__":
    main()
