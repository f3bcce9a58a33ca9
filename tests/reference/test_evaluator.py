"""Whole packages: what goes in and comes out, whole programs against PyTorch, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mobilevit_coreml._coremltools import ct
from mobilevit_coreml.errors import InputError, PackageError, UnsupportedError
from mobilevit_coreml.reference import ReferenceEvaluator
from tests.peers import randomize, snr

RNG = np.random.default_rng(0)


class Net(nn.Module):
    """A small network with what vision networks have; its answer is 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        x = F.max_pool2d(x + F.gelu(self.depthwise(x)), 2)
        return self.head(x.mean((2, 3)))


def convert(model: nn.Module, path: Path, **options: Any) -> Path:
    """Trace and convert a model of (1, 3, 16, 20) and save it."""
    defaults = {
        "inputs": [ct.TensorType("x", (1, 3, 16, 20), dtype=np.float32)],
        "outputs": [ct.TensorType("y", dtype=np.float32)],
        "minimum_deployment_target": ct.target.iOS16,
        "compute_precision": ct.precision.FLOAT32,
    }
    options = defaults | options
    traced = torch.jit.trace(model.eval(), torch.zeros(1, 3, 16, 20))
    ct.convert(traced, convert_to="mlprogram", skip_model_load=True, **options).save(str(path))
    return path


@pytest.fixture(scope="module")
def net() -> Any:
    return randomize(Net())


@pytest.fixture(scope="module")
def packages(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same network as packages of several kinds."""
    directory = tmp_path_factory.mktemp("packages")
    image = {"name": "x", "shape": (1, 3, 16, 20)}
    classes = ct.ClassifierConfig(["a", "b", "c", "d"])
    fp16 = {"compute_precision": ct.precision.FLOAT16}
    kinds: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "array": (net, {}),
        "array_fp16": (net, fp16),
        "rgb": (net, {"inputs": [ct.ImageType(**image, scale=1 / 127.5, bias=[-1.0, -0.9, -1.1])]}),
        "bgr": (net, {"inputs": [ct.ImageType(**image, color_layout=ct.colorlayout.BGR)]}),
        "classifier": (nn.Sequential(net, nn.Softmax(1)), {"classifier_config": classes}),
        "numbered": (nn.Sequential(net, nn.Softmax(1)), {"classifier_config": ct.ClassifierConfig([10, 20, 30, 40])}),
        "iOS15": (net, {"minimum_deployment_target": ct.target.iOS15}),
        "iOS18": (net, {"minimum_deployment_target": ct.target.iOS18, **fp16}),
    }

    def package(kind: str) -> Path:
        path = directory / f"{kind}.mlpackage"
        if not path.exists():
            model, options = kinds[kind]
            convert(model, path, **options)
        return path

    return package


def picture() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (16, 20, 3), dtype=np.uint8))


def result(outputs: dict[str, Any]) -> Tensor:
    (output,) = outputs.values()
    return torch.from_numpy(output)


@pytest.mark.parametrize(("kind", "least"), [("array", 110), ("iOS15", 110), ("array_fp16", 45), ("iOS18", 45)])
def test_a_whole_program_against_pytorch(
    packages: Callable[[str], Path], net: nn.Module, kind: str, least: int
) -> None:
    # fp32 agrees to its last digits, fp16 to its own rounding of weights and values
    x = RNG.normal(size=(1, 3, 16, 20)).astype(np.float32)
    precision = "fp32" if least > 100 else "fp16"
    output = result(ReferenceEvaluator(packages(kind), precision=precision).run({"x": x}))
    assert snr(net(torch.from_numpy(x)), output) > least


def test_pictures_are_laid_out_as_the_package_says(packages: Callable[[str], Path], net: nn.Module) -> None:
    image = picture()
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)[None]
    scaled = pixels / 127.5 + torch.tensor([-1.0, -0.9, -1.1]).view(1, 3, 1, 1)
    assert snr(net(scaled), result(ReferenceEvaluator(packages("rgb"), "fp32").run({"x": image}))) > 100
    assert snr(net(pixels.flip(1)), result(ReferenceEvaluator(packages("bgr"), "fp32").run({"x": image}))) > 100


@pytest.mark.parametrize(("kind", "names"), [("classifier", ["a", "b", "c", "d"]), ("numbered", [10, 20, 30, 40])])
def test_a_classifier_names_its_class(
    packages: Callable[[str], Path], net: nn.Module, kind: str, names: list[object]
) -> None:
    x = RNG.normal(size=(1, 3, 16, 20)).astype(np.float32)
    evaluator = ReferenceEvaluator(packages(kind), "fp32")
    outputs = evaluator.run({"x": x})
    expected = net(torch.from_numpy(x)).softmax(1)[0]
    assert outputs["classLabel"] == names[int(expected.argmax())]
    assert list(outputs["classLabel_probs"]) == names
    assert list(outputs["classLabel_probs"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert [feature.kind for feature in evaluator.outputs.values()] == ["label", "probabilities"]


def test_declares_inputs_and_outputs(packages: Callable[[str], Path]) -> None:
    image = ReferenceEvaluator(packages("bgr")).inputs["x"]
    assert (image.kind, image.shape, image.dtype, image.color_layout) == ("image", (16, 20), "uint8", "BGR")
    evaluator = ReferenceEvaluator(packages("array"))
    array, (output,) = evaluator.inputs["x"], evaluator.outputs.values()
    assert (array.kind, array.shape, array.dtype, array.color_layout) == ("array", (1, 3, 16, 20), "float32", None)
    assert (output.kind, output.dtype) == ("array", "float32")


def test_captures_values_by_name_or_all(packages: Callable[[str], Path]) -> None:
    evaluator = ReferenceEvaluator(packages("array"))
    x = {"x": np.zeros((1, 3, 16, 20), np.float32)}
    (output,) = evaluator.outputs
    first = evaluator.function.operations[0].name
    assert set(evaluator.run(x)) == {output}
    assert set(evaluator.run(x, capture=[first])) == {output, first}
    everything = evaluator.run(x, capture=True)
    assert {name for operation in evaluator.function.operations for name in operation.outputs} <= set(everything)
    with pytest.raises(InputError, match="capture: expected names of values, got nonsense"):
        evaluator.run(x, capture=["nonsense"])


def test_image_outputs_are_pictures(tmp_path: Path) -> None:
    class Invert(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 300 - x  # past 255 where x is under 45

    outputs = [ct.ImageType("y", color_layout=ct.colorlayout.BGR)]
    inputs = [ct.ImageType("x", (1, 3, 16, 20), color_layout=ct.colorlayout.BGR)]
    path = convert(Invert(), tmp_path / "x.mlpackage", inputs=inputs, outputs=outputs)
    image = picture()
    inverted = ReferenceEvaluator(path).run({"x": image})["y"]
    assert (inverted.mode, inverted.size) == ("RGB", (20, 16))
    assert np.array_equal(np.asarray(inverted), np.clip(300 - np.asarray(image).astype(int), 0, 255))


@pytest.mark.parametrize(("layout", "mode"), [(ct.colorlayout.GRAYSCALE, "L"), (ct.colorlayout.GRAYSCALE_FLOAT16, "F")])
def test_grey_pictures_in_and_out(layout: Any, mode: str, tmp_path: Path) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x[:, :1]

    inputs = [ct.ImageType("x", (1, 1, 16, 20), color_layout=layout)]
    convert(Double(), tmp_path / "x.mlpackage", inputs=inputs, outputs=[ct.ImageType("y", color_layout=layout)])
    values = RNG.integers(0, 128, (16, 20)).astype(np.uint8 if mode == "L" else np.float32)
    doubled = ReferenceEvaluator(tmp_path / "x.mlpackage").run({"x": Image.fromarray(values)})["y"]
    assert doubled.mode == mode
    assert np.array_equal(np.asarray(doubled), 2 * values)


def test_functions_of_one_package(packages: Callable[[str], Path], tmp_path: Path) -> None:
    descriptor = ct.utils.MultiFunctionDescriptor()
    other = convert(nn.ReLU(), tmp_path / "other.mlpackage", minimum_deployment_target=ct.target.iOS18)
    descriptor.add_function(str(packages("iOS18")), "main", "classify")
    descriptor.add_function(str(other), "main", "relu")
    descriptor.default_function_name = "classify"
    path = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(descriptor, str(path))
    x = RNG.normal(size=(1, 3, 16, 20)).astype(np.float32)
    alone = result(ReferenceEvaluator(packages("iOS18")).run({"x": x}))
    assert torch.equal(result(ReferenceEvaluator(path).run({"x": x})), alone)
    relu = ReferenceEvaluator(path, function_name="relu", precision="fp32")
    assert torch.equal(result(relu.run({"x": x})), torch.from_numpy(x).relu())
    with pytest.raises(PackageError, match="expected a function called none, got classify, relu; choose one of these"):
        ReferenceEvaluator(path, function_name="none")


def test_shapes_a_package_leaves_open(tmp_path: Path) -> None:
    shape = ct.Shape((1, 3, ct.RangeDim(8, 32, default=16), 20))
    ranged = convert(randomize(Net()), tmp_path / "r.mlpackage", inputs=[ct.TensorType("x", shape)])
    several = ct.EnumeratedShapes([(1, 3, 16, 20), (1, 3, 24, 20)], default=(1, 3, 16, 20))
    listed = convert(randomize(Net()), tmp_path / "l.mlpackage", inputs=[ct.TensorType("x", several)])
    x = RNG.normal(size=(1, 3, 24, 20)).astype(np.float32)
    expected = randomize(Net())(torch.from_numpy(x))
    for path in (ranged, listed):
        assert snr(expected, result(ReferenceEvaluator(path, "fp32").run({"x": x}))) > 100
    shapes = {ranged: "(1, 3, 8 to 32, 20)", listed: "(1, 3, 16, 20) or (1, 3, 24, 20)"}
    for path, expected_shapes in shapes.items():
        with pytest.raises(InputError) as error:
            ReferenceEvaluator(path).run({"x": np.zeros((1, 3, 40, 20))})
        assert str(error.value) == (
            f"input x: expected an array of shape {expected_shapes}, got (1, 3, 40, 20); reshape it"
        )


def test_sizes_a_package_leaves_open_for_an_image(tmp_path: Path) -> None:
    shape = ct.Shape((1, 3, ct.RangeDim(8, 32, default=16), ct.RangeDim(20, 30, default=20)))
    sizes = ct.EnumeratedShapes([(1, 3, 16, 20), (1, 3, 24, 20)], default=(1, 3, 16, 20))
    expected = {"r": (shape, "width 20 to 30 and height 8 to 32"), "l": (sizes, "20x16 or 20x24")}
    for name, (given, text) in expected.items():
        path = convert(nn.ReLU(), tmp_path / f"{name}.mlpackage", inputs=[ct.ImageType("x", given)])
        with pytest.raises(InputError, match=f"input x: expected an image of {text} pixels, got 20x40; resize"):
            ReferenceEvaluator(path).run({"x": Image.new("RGB", (20, 40))})


def test_an_array_with_nan_is_taken(packages: Callable[[str], Path], net: nn.Module) -> None:
    x = RNG.normal(size=(1, 3, 16, 20)).astype(np.float32)
    x[0, 0, 3, 4] = np.nan
    output = result(ReferenceEvaluator(packages("array")).run({"x": x}))
    assert torch.equal(output.isnan(), net(torch.from_numpy(x)).isnan())
    assert output.isnan().any()


def test_an_input_left_out_has_its_default(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    ones = np.ones((2, 3), np.float32)
    inputs = [ct.TensorType("x", (2, 3), default_value=ones), ct.TensorType("y", (2, 3))]
    model = torch.jit.trace(Sum(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    package = ct.convert(
        model, convert_to="mlprogram", inputs=inputs, outputs=[ct.TensorType("z")], skip_model_load=True
    )
    package.save(str(tmp_path / "x.mlpackage"))
    evaluator = ReferenceEvaluator(tmp_path / "x.mlpackage")
    assert np.array_equal(result(evaluator.run({"y": 2 * ones})), 3 * ones)
    assert np.array_equal(result(evaluator.run({"x": 5 * ones, "y": 2 * ones})), 7 * ones)
    with pytest.raises(InputError, match="inputs: expected x, y, got x; add y"):
        evaluator.run({"x": ones})


def test_a_scalar_output_is_an_array_of_one(tmp_path: Path) -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    path = convert(Total(), tmp_path / "x.mlpackage")
    output = result(ReferenceEvaluator(path).run({"x": np.ones((1, 3, 16, 20), np.float32)}))
    assert output.shape == (1,)
    assert output.item() == 960


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("array", {}, "inputs: expected x, got none; add x"),
        ("array", {"y": 1}, "inputs: expected x, got y; add x"),
        ("array", {"x": 1, "y": 1}, "inputs: expected x, got x, y; leave out y"),
        (
            "array",
            {"x": np.zeros((3, 16, 20))},
            "input x: expected an array of shape (1, 3, 16, 20), got (3, 16, 20); reshape it",
        ),
        ("array", {"x": "text"}, "input x: expected an array of numbers, got str"),
        ("rgb", {"x": np.zeros((16, 20, 3))}, "input x: expected a PIL image, got ndarray; the package takes images"),
        (
            "rgb",
            {"x": Image.new("RGB", (16, 20))},
            "input x: expected an image of 20x16 pixels, got 16x20; resize and crop it first",
        ),
        (
            "rgb",
            {"x": Image.new("RGBA", (20, 16))},
            "input x: expected an image of mode RGB, got RGBA; convert it with image.convert('RGB')",
        ),
    ],
)
def test_inputs_that_do_not_fit(
    packages: Callable[[str], Path], kind: str, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        ReferenceEvaluator(packages(kind)).run(inputs)
    assert str(error.value).startswith(message)


def test_precision_must_be_known(packages: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="precision: expected one of fp16, fp32, got 'int8'; choose one of these"):
        ReferenceEvaluator(packages("array"), precision="int8")


def refusal(path: Path) -> str:
    with pytest.raises(PackageError) as error:
        ReferenceEvaluator(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"package {path}: ")
    return text.removeprefix(f"package {path}: ")


def copy(package: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy to damage, and the folder of its program."""
    path = tmp_path / "damaged.mlpackage"
    shutil.copytree(package, path)
    return path, path / "Data" / "com.apple.CoreML"


def test_no_package_at_all(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x") == "expected a .mlpackage directory, got nothing there; check the path"
    assert refusal(tmp_path).startswith("expected a Core ML package, got a damaged package or another file (")
    (tmp_path / "x.mlpackage").write_text("hello")
    assert refusal(tmp_path / "x.mlpackage").startswith(
        "expected a Core ML package, got a damaged package or another file ("
    )


def test_the_old_kind_of_model(tmp_path: Path) -> None:
    features = [("x", ct.models.datatypes.Array(3))]
    builder = ct.models.neural_network.NeuralNetworkBuilder(features, [("y", None)])
    builder.add_activation("relu", "RELU", "x", "y")
    ct.models.MLModel(builder.spec, skip_model_load=True).save(str(tmp_path / "x.mlmodel"))
    assert refusal(tmp_path / "x.mlmodel") == (
        "expected an ML Program, got neuralNetwork; convert with convert_to='mlprogram' and a target of iOS15 or later"
    )


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_program(packages: Callable[[str], Path], tmp_path: Path, keep: float) -> None:
    path, folder = copy(packages("array"), tmp_path)
    content = (folder / "model.mlmodel").read_bytes()
    (folder / "model.mlmodel").write_bytes(content[: int(len(content) * keep)])
    text = refusal(path)
    assert "expected a Core ML package, got a damaged" in text or "expected an ML Program, got an empty" in text


def test_missing_and_truncated_weights(packages: Callable[[str], Path], tmp_path: Path) -> None:
    path, folder = copy(packages("array_fp16"), tmp_path)
    weights = folder / "weights" / "weight.bin"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "the package is damaged, convert or copy it again" in refusal(path)
    weights.unlink()
    assert "expected fp16 values at byte" in refusal(path)


def test_an_operation_nobody_implemented(packages: Callable[[str], Path], tmp_path: Path) -> None:
    path, folder = copy(packages("array"), tmp_path)
    spec = ct.utils.load_spec(str(path))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    operations = [operation for operation in block.operations if operation.type != "const"]
    operations[1].type = "frobnicate"
    (folder / "model.mlmodel").write_bytes(spec.SerializeToString())
    name = operations[1].outputs[0].name
    with pytest.raises(UnsupportedError) as error:
        ReferenceEvaluator(path)
    assert f"operation 2 of {len(operations)}, frobnicate '{name}': expected an implemented operation" in str(
        error.value
    )


def test_an_attribute_nobody_implemented(packages: Callable[[str], Path], tmp_path: Path) -> None:
    path, folder = copy(packages("array"), tmp_path)
    spec = ct.utils.load_spec(str(path))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    operation = next(operation for operation in block.operations if operation.type == "conv")
    operation.inputs["twist"].CopyFrom(operation.inputs["weight"])
    (folder / "model.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(
        UnsupportedError, match=r"conv '.*': expected the parameters x, weight, bias, .* got unknown twist"
    ):
        ReferenceEvaluator(path)


def test_an_attribute_value_nobody_implemented(packages: Callable[[str], Path], tmp_path: Path) -> None:
    path, folder = copy(packages("array"), tmp_path)
    content = (folder / "model.mlmodel").read_bytes()
    assert b"custom" in content  # the padding's kind
    (folder / "model.mlmodel").write_bytes(content.replace(b"custom", b"cosmic"))
    with pytest.raises(
        UnsupportedError, match="conv '.*': pad_type: expected valid, same, same_lower or custom, got 'cosmic'"
    ):
        ReferenceEvaluator(path).run({"x": np.zeros((1, 3, 16, 20))})


def test_a_stride_of_zero(packages: Callable[[str], Path], tmp_path: Path) -> None:
    path, folder = copy(packages("array"), tmp_path)
    spec = ct.utils.load_spec(str(path))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (name,) = next(entry for entry in block.operations if entry.type == "conv").inputs["strides"].arguments
    strides = next(entry for entry in block.operations if entry.outputs[0].name == name.name)
    strides.attributes["val"].immediateValue.tensor.ints.values[:] = [0, 0]
    (folder / "model.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=r"conv '.*': expected arguments that fit each other, got .*zero"):
        ReferenceEvaluator(path).run({"x": np.zeros((1, 3, 16, 20))})
