"""Files as they come: names, shared weights, branches, open sizes, and what is wrong with them."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from capture.onnx.files import FLOAT, INT64, export, write
from secateur.capture.onnx import OnnxModel, load_onnx
from secateur.capture.onnx.file import OnnxFile
from secateur.capture.onnx.names import free_path, identifiers, put
from secateur.errors import CaptureError, FileError, MissingExtraError, UsageError

RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Scopes(nn.Module):
    """Layers inside of others, a residual, and a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 1)))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.blocks(x)
        found: torch.Tensor = self.head(self.norm(x.mean((2, 3))))
        return found


@pytest.mark.parametrize("dynamo", [False, True], ids=["old", "dynamo"])
def test_layers_have_the_names_of_the_model_that_was_exported(dynamo: bool, tmp_path: Path) -> None:
    model = load_onnx(export(Scopes(), (torch.randn(2, 3, 6, 6),), tmp_path / "m.onnx", 18, dynamo=dynamo))
    found = {name: type(module) for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None}
    assert found == {
        "stem": nn.Conv2d,
        "blocks.0.0": nn.Conv2d,
        "blocks.1.0": nn.Conv2d,
        "norm": nn.LayerNorm,
        "head": nn.Linear,
    }
    assert not model.training


def test_names_of_scopes_are_read_without_their_repetitions(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "onnx::Conv_1"], ["h"], name="/layer1/layer1.0/conv/Conv"),
        helper.make_node("MatMul", ["h", "onnx::MatMul_2"], ["y"], name="/MatMul"),
    ]
    weights = {"onnx::Conv_1": numbers(2, 3, 1), "onnx::MatMul_2": numbers(4, 4)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 3, 4])}, ["y"], weights))
    assert [name for name, _ in model.named_parameters()] == ["layer1.0.conv.weight", "matmul.weight"]


def test_names_that_modules_have_themselves_are_left_alone() -> None:
    root = nn.Module()
    put(root, "layer", nn.Linear(2, 2))
    assert free_path(root, "layer.inner") == "layer_.inner"
    assert free_path(root, "layer") == "layer_2"
    assert free_path(root, "type") == "type_2"
    assert free_path(root, "new.weight") == "new.weight"
    assert identifiers(["input.1", "input_1", "class", "5"], "input") == ["input_1", "input_1_2", "input_class", "input_5"]


def test_vectors_that_an_exporter_stored_once_belong_to_each_layer(tmp_path: Path) -> None:
    """Matrices that two nodes read are one weight all the same, and layers of equal weights are one layer."""
    nodes = [
        helper.make_node("Identity", ["a.bias"], ["b.bias"]),
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "b.weight", "b.bias"], ["i"], transB=1),
        helper.make_node("Gemm", ["i", "b.weight", "b.bias"], ["j"], transB=1),
        helper.make_node("MatMul", ["j", "b.weight"], ["y"], name="last"),
    ]
    weights = {"a.weight": numbers(4, 4), "b.weight": numbers(4, 4, seed=1), "a.bias": numbers(4)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 4])}, ["y"], weights))
    found = dict(model.named_parameters())
    assert list(found) == ["a.weight", "a.bias", "b.weight", "b.bias", "b_2.weight"]
    assert found["a.bias"].data_ptr() != found["b.bias"].data_ptr()


def test_a_table_that_is_also_a_matrix_is_one_parameter(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table.weight", "x"], ["rows"]),
        helper.make_node("Transpose", ["table.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"], name="head"),
    ]
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (INT64, ["n", 3])}, ["y"], {"table.weight": numbers(7, 4)}))
    assert isinstance(model.table, nn.Embedding)
    assert model.head.weight is model.table.weight
    assert len(list(model.parameters())) == 1


def test_a_product_and_the_sum_after_it_are_one_layer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Add", ["b", "h"], ["i"]),
        helper.make_node("MatMul", ["i", "w2"], ["j"], name="second"),
        helper.make_node("Add", ["j", "b"], ["y"]),
    ]
    weights = {"w": numbers(3, 4), "w2": numbers(4, 4), "b": numbers(4)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 3])}, ["y", "j"], weights))
    assert {name for name, _ in model.named_parameters()} == {"first.weight", "first.bias", "second.weight", "b"}


@pytest.mark.parametrize(("opset", "open_batch"), [(13, True), (17, False)])
def test_a_group_norm_is_found_in_its_parts(opset: int, open_batch: bool, tmp_path: Path) -> None:
    layer = nn.GroupNorm(2, 4, eps=1e-3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    whole = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    more = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}} if open_batch else {}
    model = load_onnx(export(whole, (torch.randn(2, 3, 4, 4),), tmp_path / "m.onnx", opset, **more))
    (found,) = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert (found.num_groups, found.num_channels, found.eps) == (2, 4, pytest.approx(1e-3))
    assert [step.node.operator for step in model._block.steps] == ["Conv", "GroupNormalization"]


@pytest.mark.parametrize(
    "change",
    [
        {"scale": np.array([1, 2], np.float32)},
        {"shift": np.array([1, 0], np.float32)},
        {"w": numbers(4, 3, 3)},
        {"rows": np.array([0, 2, 18])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_instance_norm_with_something_else_around_stays_one(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["h"]),
        helper.make_node("InstanceNormalization", ["h", "scale", "shift"], ["i"]),
        helper.make_node("Reshape", ["i", "back"], ["j"]),
        helper.make_node("Mul", ["j", "w"], ["k"]),
        helper.make_node("Add", ["k", "b"], ["y"]),
    ]
    usual = {
        "rows": np.array([0, 2, -1]),
        "scale": np.ones(2, np.float32),
        "shift": np.zeros(2, np.float32),
        "back": np.array([2, 4, 3, 3]),
    }
    usual |= {"w": numbers(4, 1, 1), "b": numbers(4, 1, 1)}
    ports = {"x": (FLOAT, [2, 4, 3, 3])}
    found = load_onnx(write(tmp_path / "a.onnx", nodes, ports, ["y"], usual))
    assert any(isinstance(module, nn.GroupNorm) for module in found.modules())
    other = load_onnx(write(tmp_path / "b.onnx", nodes, ports, ["y"], usual | change))
    assert not any(isinstance(module, nn.GroupNorm) for module in other.modules())


def test_stored_weights_can_be_trained_and_constants_of_nodes_cannot(tmp_path: Path) -> None:
    table = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(numbers(4, seed=1)))
    nodes = [
        table,
        helper.make_node("Mul", ["x", "scale"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["i"], name="shift"),
        helper.make_node("Add", ["i", "onnx::Add_7"], ["y"], name="folded"),
    ]
    weights = {"scale": numbers(4), "onnx::Add_7": numbers(4, seed=2)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 4])}, ["y"], weights))
    assert [name for name, _ in model.named_parameters()] == ["scale"]
    assert [name for name, _ in model.named_buffers()] == ["c", "folded.add_constant"]
    assert model(x=torch.ones(2, 4)).requires_grad


@pytest.mark.parametrize("sample", [torch.tensor(True), torch.tensor(False)], ids=["then", "else"])
def test_branches(sample: torch.Tensor, tmp_path: Path) -> None:
    """Names inside of one branch may repeat those of the other; a fixed condition leaves one."""

    def block(factor: float) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], ["c"], value_float=factor)
        return helper.make_graph(
            [constant, helper.make_node("Mul", ["x", "c"], ["z"])], "b", [], [helper.make_empty_tensor_value_info("z")]
        )

    node = helper.make_node("If", ["which"], ["y"], then_branch=block(2.0), else_branch=block(3.0))
    path = write(tmp_path / "m.onnx", [node], {"x": (FLOAT, [2]), "which": np.array(True)}, ["y"])
    factor = 2.0 if bool(sample) else 3.0
    x = torch.ones(2)
    torch.testing.assert_close(load_onnx(path)(x, sample), x * factor)
    fixed = load_onnx(path, fixed={"which": sample})
    assert list(fixed.file_names.inputs) == ["x"]
    torch.testing.assert_close(fixed(x), x * factor)
    with pytest.raises(UsageError, match="has no input other"):
        load_onnx(path, fixed={"other": 1})


def test_a_state_of_zeros_is_none(tmp_path: Path) -> None:
    """Exporters write zeros of the batch's size, which torch takes by itself; other states are handed on."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["n"]),
        helper.make_node("Concat", ["one", "n", "units"], ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("Identity", ["zeros"], ["start"]),
        helper.make_node("LSTM", ["x", "w", "r", "", "", "start", "zeros"], ["y"], hidden_size=4, name="lstm"),
    ]
    constants = {"one": np.array([1]), "units": np.array([4]), "w": numbers(1, 16, 3), "r": numbers(1, 16, 4)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [5, "n", 3])}, ["y"], constants))
    assert model._block.steps[-1].operands[5:] == ("", "")
    ports = {"x": (FLOAT, [5, "n", 3]), "start": (FLOAT, [1, "n", 4]), "zeros": (FLOAT, [1, "n", 4])}
    given = load_onnx(
        write(tmp_path / "g.onnx", nodes[-1:], ports, ["y"], constants), inputs=[torch.ones(5, 2, 3), *[torch.ones(1, 2, 4)] * 2]
    )
    assert given._block.steps[-1].operands[5:] == ("start", "zeros")


def test_functions_of_the_file_are_written_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Twice", ["x"], ["y"], domain="own")], {"x": (FLOAT, [2])}, ["y"])
    proto = onnx.load(path)
    proto.opset_import.append(helper.make_opsetid("own", 99))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    onnx.save(proto, path)
    assert OnnxFile.open(path).opset == 18
    torch.testing.assert_close(load_onnx(path)(torch.ones(2)), torch.full((2,), 2.0))


def test_weights_that_are_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    ports = {"x": (FLOAT, [-1, 3]), "w": (FLOAT, [3, 4])}
    path = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], ports, ["y"], {"w": numbers(3, 4)})
    model = load_onnx(path)
    assert [str(port) for port in model.ports] == ["x: float32[?, 3]"]
    assert model.ports[0].open


def test_weights_in_half_precision_and_in_types_that_numpy_lacks(tmp_path: Path) -> None:
    half = helper.make_node("Constant", [], ["h"], value=helper.make_tensor("h", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0]))
    nodes = [half, helper.make_node("Cast", ["h"], ["f"], to=FLOAT), helper.make_node("Add", ["x", "f"], ["y"])]
    torch.testing.assert_close(
        load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2])}, ["y"]))(torch.zeros(2)), torch.tensor([1.5, -2.0])
    )


def test_models_can_be_copied_and_called_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["a.1", "b"], ["y"]), helper.make_node("Shape", ["y"], ["z"])]
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"a.1": (FLOAT, [2]), "b": (FLOAT, [2])}, ["y", "z"]))
    assert model.file_names.inputs == {"a_1": "a.1", "b": "b"}
    assert model.file_names.in_order((0,), {"b": 0}) == ("a.1", "b")
    difference, shape = copy.deepcopy(model)(b=torch.ones(2), a_1=torch.zeros(2))
    assert (difference.tolist(), shape.tolist()) == ([-1, -1], [2])
    with pytest.raises(TypeError, match="missing"):
        model(torch.ones(2))


def test_examples_need_the_sizes_that_are_open(tmp_path: Path) -> None:
    model = load_onnx(write(tmp_path / "m.onnx", [RELU], {"x": (FLOAT, ["n", 3])}, ["y"]))
    (x,) = model.examples({"n": 5}, seed=3)
    assert x.shape == (5, 3)
    assert torch.equal(x, model.examples({"n": 5}, seed=3)[0])
    with pytest.raises(UsageError, match=r"leaves sizes open: x: float32\[n, 3\]"):
        model.examples()


class TestWhatIsWrong:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="There is no file"):
            load_onnx(tmp_path / "absent.onnx")

    @pytest.mark.parametrize("content", [b"", b"rubbish"])
    def test_no_onnx(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(FileError, match="is no readable ONNX file"):
            load_onnx(tmp_path / "m.onnx")

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
    def test_no_extra(self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "m.onnx", [RELU], {"x": (FLOAT, [2])}, ["y"])
        monkeypatch.setitem(importlib.import_module("sys").modules, package, None)
        with pytest.raises(MissingExtraError, match=r"secateur\[onnx\]"):
            load_onnx(path)

    def test_weights_beside_the_file(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, [2, 9])}, ["y"], {"w": numbers(9, 9)}
        )
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
        assert next(load_onnx(path).parameters()).shape == (9, 9)
        (tmp_path / "w.bin").unlink()
        with pytest.raises(FileError, match=r"w\.bin"):
            load_onnx(path)

    def test_an_operator_of_another_domain(self, tmp_path: Path) -> None:
        node = helper.make_node("FusedGelu", ["x"], ["y"], name="g", domain="com.microsoft")
        path = write(tmp_path / "m.onnx", [node], {"x": (FLOAT, [2])}, ["y"])
        with pytest.raises(CaptureError, match=r"com.microsoft::FusedGelu \(node 'g', opset 18\): this operator cannot be read"):
            load_onnx(path)

    def test_an_opset_from_long_ago(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.onnx", [RELU], {"x": (FLOAT, [2])}, ["y"], opset=6)
        with pytest.raises(CaptureError, match="is of opset 6; 7 is the oldest"):
            load_onnx(path)

    def test_an_input_that_is_no_tensor(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.onnx", [helper.make_node("SequenceAt", ["x", "zero"], ["y"])], {}, ["y"], {"zero": np.array(0)})
        proto = onnx.load(path)
        proto.graph.input.append(helper.make_tensor_sequence_value_info("x", FLOAT, None))
        onnx.save(proto, path)
        with pytest.raises(CaptureError, match=r"The input 'x' of .* is no tensor"):
            load_onnx(path)

    def test_a_type_that_torch_does_not_have(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": (onnx.TensorProto.STRING, [2])}, ["y"])
        with pytest.raises(CaptureError, match="type string, which PyTorch does not have"):
            load_onnx(path)

    def test_a_file_that_the_runtime_does_not_open(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": (FLOAT, [2])}, ["y"])
        proto = onnx.load(path)
        proto.graph.node[0].input[1] = "nowhere"
        onnx.save(proto, path)
        with pytest.raises(CaptureError, match="ONNX Runtime cannot open"):
            load_onnx(path)


def test_the_standard_tells_ranks_that_the_weights_do_not(tmp_path: Path) -> None:
    vectors = {name: np.abs(numbers(4)) for name in "smbv"}
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("BatchNormalization", ["h", *"smbv"], ["y"], name="bn")]
    path = write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 4, 5])}, ["y"], vectors)
    assert OnnxFile.open(path).rank("h") == 3
    model = load_onnx(path)
    assert isinstance(model, OnnxModel)
    assert isinstance(model.bn, nn.BatchNorm1d)


def test_operators_tell_ranks_that_the_standard_does_not(tmp_path: Path) -> None:
    """What a reshape to computed sizes makes has an unknown rank, until it is flattened."""
    vectors = {name: np.abs(numbers(4)) for name in "smbv"}
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["h"]),
        helper.make_node("Flatten", ["h"], ["i"]),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("BatchNormalization", ["j", *"smbv"], ["y"], name="bn"),
    ]
    ports = {"x": (FLOAT, [2, 4]), "sizes": (INT64, ["r"])}
    path = write(tmp_path / "m.onnx", nodes, ports, ["y"], vectors)
    model = load_onnx(path, inputs=(torch.ones(2, 4), torch.tensor([2, 4, 1])))
    assert isinstance(model.bn, nn.BatchNorm1d)


def test_what_an_exporter_repeated_for_each_sample_is_one_row(tmp_path: Path) -> None:
    token, heads = numbers(1, 1, 4).repeat(2, 0), np.ones((2, 1, 1), np.float32)
    nodes = [
        helper.make_node("Concat", ["token", "x"], ["h"], axis=1),
        helper.make_node("Mul", ["h", "heads"], ["s"]),
        helper.make_node("Expand", ["place", "sizes"], ["places"]),
        helper.make_node("Add", ["s", "places"], ["y"]),
    ]
    weights = {"token": token, "heads": heads, "place": numbers(1, 3, 4), "sizes": np.array([2, 3, 4])}
    path = write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 2, 4])}, ["y"], weights)
    model = load_onnx(path)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {"token": (1, 1, 4), "heads": (2, 1, 1)}
    assert {tuple(b.shape) for b in model.buffers()} == {(1, 3, 4)}
