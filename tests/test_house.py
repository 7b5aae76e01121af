"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import secateur

ROOT = Path(__file__).parent.parent / "src" / "secateur"
SENTENCE = (
    *("errors", "files", "plan", "capture", "groups", "score", "allocate", "decompose", "rewrite", "recover", "measure", "layers"),
    *("target", "export", "pretrained", "report", "result", "tune", "study", "pipeline", "sweep", "iterative", "cli"),
)
LONGEST_FUNCTION = 60
ARCHITECTURES = frozenset(
    [
        *(
            "alexnet",
            "vgg",
            "resnet",
            "resnext",
            "wideresnet",
            "densenet",
            "googlenet",
            "inception",
            "squeezenet",
            "shufflenet",
            "ghostnet",
        ),
        *("mobilenet", "mnasnet", "efficientnet", "regnet", "hrnet", "repvgg", "nfnet", "res2net", "resnest", "convnext", "poolformer"),
        *("vit", "deit", "beit", "swin", "maxvit", "levit", "cait", "xcit", "pvt", "mobilevit", "edgenext", "halonet"),
        *("bert", "roberta", "gpt", "gpt2", "llama", "qwen", "mistral", "t5", "whisper", "wav2vec"),
        *("deeplab", "deeplabv3", "fcn", "lraspp", "unet", "yolo", "retinanet", "fasterrcnn", "maskrcnn"),
    ]
)
NAMING_PLACES = ("cli/demo", "capture/sources")

SOURCES = sorted(ROOT.rglob("*.py"))


def source_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Each import of a part of the package as (line, room); importing the package's face counts as a room of its own."""
    package = ["secateur", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *filter(None, [node.module])])
            modules = [f"{source}.{alias.name}" for alias in node.names] if source == "secateur" else [source]
        else:
            continue
        parts = [module.split(".") for module in modules]
        yield from ((node.lineno, names[1] if len(names) > 1 else "secateur") for names in parts if names[0] == "secateur")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def docstrings(tree: ast.Module) -> set[ast.AST]:
    """Expressions that are a string and nothing else: docstrings, and the strings that document an attribute."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Identifiers and string constants as (line, text), docstrings left out."""
    tree = ast.parse(path.read_text())
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)) if node not in documentation:
                yield line, text
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.alias(name=text):
                yield line, text
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.AsyncFunctionDef(name=text) | ast.keyword(arg=str(text)):
                yield line, text


def words(text: str) -> Iterator[str]:
    """The words of an identifier or a sentence in lower case, each also without the digits at its end."""
    for word in re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z0-9]+", text):
        yield word.lower()
        yield word.lower().rstrip("0123456789")


def test_the_public_names_are_what_the_package_exposes() -> None:
    exposed = {
        name
        for name, value in vars(secateur).items()
        if not name.startswith("_") and name != "annotations" and not isinstance(value, ModuleType)
    }
    assert len(secateur.__all__) == len(set(secateur.__all__))
    assert set(secateur.__all__) - {"__version__"} == exposed


def test_there_are_sources_to_look_at() -> None:
    assert {"errors.py", "plan.py", "__init__.py"} <= {source_id(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=source_id)
def test_imports_run_along_the_sentence(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__", "cli"):
        return
    assert room in SENTENCE, f"{room} has no place in the sentence: move the file into a room, or give the room a place here"
    earlier = SENTENCE[: SENTENCE.index(room) + 1]
    against = [f"line {line} imports {other}" for line, other in imported_rooms(path) if other not in earlier]
    assert not against, f"{source_id(path)} is in {room}, but " + ", ".join(against)


@pytest.mark.parametrize("path", SOURCES, ids=source_id)
def test_no_function_is_long(path: Path) -> None:
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions(path)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if not source_id(path).startswith(NAMING_PLACES)], ids=source_id)
def test_no_architecture_is_named(path: Path) -> None:
    named = [f"line {line}: {text!r}" for line, text in texts(path) if ARCHITECTURES.intersection(words(text))]
    assert not named, "the graph answers; architectures are named in " + " and ".join(NAMING_PLACES) + " alone"


@pytest.mark.parametrize("text", ["resnet18", "SwinBlock", "torchvision:vit_b_16", "is_bert", "GPT2", "T5"])
def test_architecture_names_are_recognised(text: str) -> None:
    assert ARCHITECTURES.intersection(words(text))


@pytest.mark.parametrize("text", ["convnet", "evict", "vital", "swing", "inverted", "clipped", "t"])
def test_other_words_are_not_taken_for_architectures(text: str) -> None:
    assert not ARCHITECTURES.intersection(words(text))
