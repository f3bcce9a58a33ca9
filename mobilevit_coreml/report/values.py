"""The values of both reports: JSON, terminal and page show these, and `schema` describes them by what stands here.

Sizes are in bytes, SNR in dB, agreement, accuracy and IoU from 0 to 1, divergences in nats. A field's annotation has
its description and what else JSON Schema may say of it; the key of `class_` is class. `original` is the model in
PyTorch, `package` the package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from mobilevit_coreml.compression.plan import StoredLayer
from mobilevit_coreml.metrics import SignalFidelity
from mobilevit_coreml.package.interface import OutputOptions
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.forecast import Finding
from mobilevit_coreml.validation.program import Mismatch

SCHEMA = 2  # of a validation; counts up when something in it changes its meaning
COMPRESSION_SCHEMA = 1

DEVICES = ["neuralEngine", "gpu", "cpu"]

Texts = tuple[str, ...]
Verdict = Annotated[str, {"enum": ["PASS", "FAIL", "NOT_RUN"]}]
OperationName = Annotated[str, "Name of the operation in the program."]
OperationType = Annotated[
    str, "MIL type of the operation, such as conv; empty where the program has no such operation."
]
ModulePath = Annotated[str, "Dotted path of the PyTorch module it comes from; empty where none matches."]
ClassIndex = Annotated[int, "Index of the class."]
ClassName = Annotated[str, "Name of the class."]


@dataclass(frozen=True)
class Weights:
    """The checkpoint that a package was converted from."""

    name: Annotated[str, "Hub id, path as it was given, or untrained."]
    naming: Annotated[str, "Naming scheme of the checkpoint's keys."]
    revision: Annotated[str | None, "Commit on the hub; null of files."]
    sha256: Annotated[str | None, "Digest of the weights file; null of untrained weights."]
    seed: Annotated[int | None, "Seed of untrained weights; null of others."]
    untrained: Annotated[bool, "True for random weights."]


@dataclass(frozen=True)
class Record:
    """The package's metadata: how it was converted."""

    version: Annotated[str, "Version of mobilevit_coreml that converted it."]
    variant: Annotated[str, "Size of the network: xxs, xs, s or custom."]
    task: Annotated[str, "Task of the network.", {"enum": ["classification", "segmentation", "features"]}]
    attention: Annotated[str, "Implementation of attention: split_einsum or packed."]
    unfold: Annotated[str, "Implementation of unfolding: space_to_batch or pixel_shuffle."]
    precision: Annotated[str, "Precision of the computation: fp16 or fp32."]
    weights: Weights
    preprocessing: Annotated[Preprocessing, "Preprocessing of the first function."]
    outputs: Annotated[OutputOptions, "Options of the outputs."]
    config: Annotated[Mapping[str, Any], "Configuration of the network, without class names."]
    expand: Annotated[bool, "True with the backbone's final expansion."]
    labels: Annotated[Texts, "Class names of a segmenter; empty of others."]
    colors: Annotated[Texts, "Class colours of a segmenter as #RRGGBB; empty of others."]
    labels_renamed: Annotated[Mapping[str, str], "Names that classes had before they were made unique, by index."]
    compression: Annotated[
        Mapping[str, Any], "Scheme, calibration, layers by format, and curve; empty if uncompressed."
    ]
    sizes: Annotated[Mapping[str, tuple[int, int]], "Height and width of each function's crop, if there are several."]
    given: Annotated[Mapping[str, Any], "Options that stood in place of what the checkpoint's files say."]
    assumed: Annotated[Texts, "Assumptions, where neither files nor options say."]


@dataclass(frozen=True)
class Package:
    """The package that was validated."""

    name: Annotated[str, "Name of its directory."]
    bytes: Annotated[int, "Sum of its files."]
    sha256: Annotated[str, "Digest of its program and weights.", {"pattern": "^[0-9a-f]{64}$"}]
    record: Record


@dataclass(frozen=True)
class Images:
    """The images that both sides were run on."""

    source: Annotated[str, "Directory, or synthetic."]
    count: Annotated[int, "Number of images."]
    labelled: Annotated[bool, "True if the true class or mask of some is known."]


@dataclass(frozen=True)
class Forecast:
    """Documented rules of the Neural Engine, which the functions' forecasts name."""

    note: Annotated[str, "Meaning of a forecast."]
    rules: Annotated[Mapping[str, str], "Each rule in a sentence, with its source."]


@dataclass(frozen=True)
class Size:
    """Size of an input image, pixels."""

    height: Annotated[int, "Pixels."]
    width: Annotated[int, "Pixels."]


@dataclass(frozen=True)
class Weight:
    """A constant of an operation against the checkpoint's."""

    operation: OperationName
    type: OperationType
    module: ModulePath
    parameter: Annotated[str, "Name of the tensor in the module: weight, bias or eps."]
    format: Annotated[str, "Format by the package's record: fp16, fp32, int8, 6bit, …"]
    stored: Annotated[bool, "False if the program has no such constant of the right shape."]
    snr: Annotated[float, "SNR against the checkpoint, dB."]
    units: Annotated[float, "Largest difference, ULP of the precision."]
    passed: Annotated[bool, "True if it is the checkpoint's, as far as its format allows."]


@dataclass(frozen=True)
class Operation:
    """An operation against the same step in PyTorch; the worst of the images compared."""

    operation: OperationName
    type: OperationType
    module: ModulePath
    own: Annotated[float, "SNR with PyTorch given the operation's inputs, dB: the operation's own error."]
    accumulated: Annotated[float, "SNR with PyTorch given its own inputs, dB: the error up to here."]
    departs: Annotated[bool, "True if `own` is below the function's operation_gate."]


@dataclass(frozen=True)
class Range:
    """Range of an operation's result."""

    operation: OperationName
    type: OperationType
    max_abs: Annotated[float, "Largest absolute value over the images compared."]
    near_limit: Annotated[bool, "True within a factor of 4 of the largest fp16 number, 65504."]


@dataclass(frozen=True)
class Function:
    """A function of the package: its declarations, weights and operations."""

    input: Size
    checks: Annotated[tuple[Check, ...], "Checks of the declarations, the weights and the operations."]
    operations_in_program: Annotated[int, "Number of operations; `operations` has those with a step in PyTorch."]
    operation_gate: Annotated[float, "Lower bound of each operation's own SNR, dB."]
    departure: Annotated[Mismatch | None, "First mismatch, in program order; null if there is none."]
    failure: Annotated[str | None, "Reason why the operations could not be compared; null if they could."]
    weights: Annotated[tuple[Weight, ...], "Constants that come from the checkpoint, in program order."]
    operations: Annotated[tuple[Operation, ...], "Operations with a step in PyTorch, in program order."]
    ranges: Annotated[tuple[Range, ...], "Operations with a real result, in program order."]
    forecast: Annotated[tuple[Finding, ...], "Operations that may leave or slow the Neural Engine; nothing was run."]


@dataclass(frozen=True)
class Ranking:
    """Fidelity of a classifier's probabilities."""

    top1: Annotated[float, "Share of images with the same first class."]
    top5: Annotated[float, "Share of images with the same set of first five classes."]
    margin: Annotated[float, "Smallest difference of the original's first two probabilities."]
    max_abs_difference: Annotated[float, "Largest absolute difference of a probability."]
    kl: Annotated[float, "Kullback-Leibler divergence from the original, mean of the images, nats."]


@dataclass(frozen=True)
class LabelAgreement:
    """One of several independent labels."""

    index: ClassIndex
    class_: ClassName
    agreement: Annotated[float, "Share of images with the label on the same side of 0.5."]
    max_abs_difference: Annotated[float, "Largest absolute difference of its probability."]


@dataclass(frozen=True)
class Labels:
    """Fidelity of a classifier's probabilities of independent labels."""

    agreement: Annotated[float, "Share of labels on the same side of 0.5."]
    max_abs_difference: Annotated[float, "Largest absolute difference of a probability."]
    by_label: Annotated[tuple[LabelAgreement, ...], "Each label, in the order of the classes."]


@dataclass(frozen=True)
class ClassOverlap:
    """A class in the masks of both sides."""

    index: ClassIndex
    class_: ClassName
    pixels: Annotated[int, "Pixels of the class in the original's masks."]
    iou: Annotated[float, "Intersection over union of both sides."]


@dataclass(frozen=True)
class Masks:
    """Fidelity of a segmenter's masks."""

    pixels: Annotated[float, "Share of pixels with the same class."]
    mean_iou: Annotated[float, "Intersection over union of both sides, mean of the classes that occur."]
    classes: Annotated[int, "Number of classes that occur."]
    by_class: Annotated[tuple[ClassOverlap, ...], "Each class that occurs."]


@dataclass(frozen=True)
class Figures:
    """Fidelity of the package's outputs against PyTorch in fp32."""

    signals: Annotated[Mapping[str, SignalFidelity], "Logits and outputs of real numbers by name."]
    ranking: Annotated[Ranking | None, "Probabilities of a classifier; null of others."]
    masks: Annotated[Masks | None, "Class maps of a segmenter; null of others."]
    labels: Annotated[Labels | None, "Probabilities of independent labels; null of others."]


@dataclass(frozen=True)
class Gate:
    """A figure against its bound."""

    name: Annotated[str, "Name of the gate, as on the command line."]
    what: Annotated[str, "Meaning of the figure."]
    unit: Annotated[str, "Unit of `needed` and `got`: dB, share, nats, ms; empty of others."]
    needed: Annotated[float, "The bound."]
    at_least: Annotated[bool, "True for a lower bound, false for an upper bound."]
    got: Annotated[float | None, "The figure; null if it was not measured."]
    passed: Annotated[bool | None, "True if the bound is met; null if nothing was measured."]
    verdict: Annotated[Verdict, "NOT_RUN if nothing was measured."]


@dataclass(frozen=True)
class Latency:
    """Times of Core ML."""

    compile_seconds: Annotated[float, "Time to compile the package, seconds."]
    load_seconds: Annotated[float, "Time to load the compiled package, seconds."]
    median_ms: Annotated[float, "Median of a prediction in Core ML, milliseconds."]
    p95_ms: Annotated[float, "95th percentile of a prediction, milliseconds."]
    with_python_ms: Annotated[float, "Median with Python's conversion of images and outputs, milliseconds."]
    predictions: Annotated[int, "Number of predictions timed."]


@dataclass(frozen=True)
class DeviceShare:
    """Operations that Core ML plans to run on a device."""

    operations: Annotated[int, "Number of operations."]
    share: Annotated[float, "Share of the operations that have a device."]
    cost: Annotated[float, "Share of Core ML's estimated cost of the program."]


@dataclass(frozen=True)
class PlacedOperation:
    """An operation in Core ML's plan."""

    operation: OperationName
    type: OperationType
    device: Annotated[
        str | None, "Planned device; null where Core ML names none, as of constants.", {"enum": [*DEVICES, None]}
    ]
    cost: Annotated[float, "Share of Core ML's estimated cost of the program."]
    module: ModulePath


@dataclass(frozen=True)
class Plan:
    """Core ML's plan on the machine that ran it."""

    devices: Annotated[Mapping[Annotated[str, {"enum": DEVICES}], DeviceShare], "By device, most operations first."]
    operations: Annotated[tuple[PlacedOperation, ...], "Operations of the compiled program, in order."]


@dataclass(frozen=True)
class ClassProbability:
    """A class among the first five of either side."""

    index: ClassIndex
    class_: ClassName
    original: Annotated[float, "Probability in PyTorch."]
    package: Annotated[float, "Probability in the package."]


@dataclass(frozen=True)
class WorstImage:
    """One of the images with the least SNR."""

    picture: Annotated[str, "Name of the image."]
    snr: Annotated[float | None, "SNR of the worst signal, dB; null without signals."]
    cosine: Annotated[float | None, "Cosine of the worst signal; null without signals."]
    max_abs_difference: Annotated[float | None, "Largest absolute difference of any signal; null without signals."]
    kl: Annotated[float | None, "Divergence of the probabilities, nats; null unless a classifier."]
    same_first: Annotated[bool | None, "True if both sides have the same first class; null unless a classifier."]
    margin: Annotated[float | None, "Difference of the original's first two probabilities; null unless a classifier."]
    pixels: Annotated[float | None, "Share of pixels with the same class; null unless a segmenter."]
    mean_iou: Annotated[float | None, "Intersection over union of both masks; null unless a segmenter."]
    correct: Annotated[Mapping[str, bool] | None, "By side: true if the true class is first; null if unknown."]
    classes: Annotated[tuple[ClassProbability, ...], "Most probable in the original first."]


@dataclass(frozen=True)
class Run:
    """A function on a backend."""

    backend: Annotated[str, "Reference evaluator or Core ML.", {"enum": ["reference", "coreml"]}]
    compute_units: Annotated[str | None, "Compute units of Core ML; null of the reference, and if Core ML was not run."]
    function: Annotated[str, "Name of the function."]
    asked: Annotated[bool, "True if the verdict of the validation depends on it."]
    verdict: Annotated[Verdict, "Verdict of this run."]
    reason: Annotated[str, "Reason why something was not measured; empty if all was."]
    seconds: Annotated[float, "Duration, seconds."]
    pictures: Annotated[int, "Number of images compared."]
    figures: Annotated[Figures | None, "Fidelity; null if nothing was measured."]
    gates: Annotated[tuple[Gate, ...], "Bounds of the figures; empty if nothing was measured."]
    accuracy: Annotated[
        Mapping[str, Mapping[str, float]] | None,
        "Against labels, of original, package and their difference: top1 and top5, or mean_iou and pixel_agreement; "
        "null without labels.",
    ]
    latency: Annotated[Latency | None, "Times of Core ML; null of the reference."]
    plan: Annotated[Plan | None, "Plan of Core ML; null if there is none."]
    worst: Annotated[tuple[WorstImage, ...], "Images with the least SNR, the worst first."]

    @property
    def title(self) -> str:
        """Backend with its compute units."""
        return self.backend if self.compute_units is None else f"{self.backend} {self.compute_units}"


@dataclass(frozen=True)
class Point:
    """A choice of formats on the way to a budget: scored in PyTorch, its size predicted, unless it was built."""

    bytes: Annotated[int, "Size of the package."]
    snr: Annotated[float, "SNR of the worst signal on the images it was tested with, dB."]
    agreement: Annotated[float | None, "Share of images, or of pixels, with the same class; null of features."]


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """Validation of a Core ML package against its PyTorch model: what `validate PACKAGE --json FILE` writes."""

    schema: Annotated[int, "Version of this format.", {"const": SCHEMA}] = SCHEMA
    verdict: Annotated[Verdict, "Worst of all checks and of all runs that were asked for."]
    reasons: Annotated[Texts, "Reasons why the verdict is not PASS; empty if it is."]
    asked: Annotated[Texts, "Backends that the verdict depends on, with compute units."]
    seconds: Annotated[float, "Duration of the validation, seconds."]
    package: Package
    pictures: Images
    classes: Annotated[Texts, "Class names by index; empty of features."]
    notes: Annotated[Texts, "Assumptions about the checkpoint."]
    framework: Annotated[Check, "The checkpoint's own library, transformers or timm, on the same image files."]
    forecast: Forecast
    functions: Annotated[Mapping[str, Function], "By name; main if there is one size only."]
    runs: Annotated[tuple[Run, ...], "Each function on each backend, those that were not run included."]
    curve: Annotated[
        tuple[Point, ...], "Choices scored in PyTorch for a budget, sizes predicted, by the record; empty of others."
    ]


@dataclass(frozen=True)
class Quality:
    """Fidelity of a compressed package against PyTorch, by signal."""

    snr: Annotated[Mapping[str, float], "SNR over all images, dB."]
    worst_picture_snr: Annotated[Mapping[str, float], "SNR of the worst image, dB."]
    cosine: Annotated[Mapping[str, float], "Cosine over all images."]
    agreement: Annotated[float | None, "Share of images, or of pixels, with the same class; null of features."]


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """Compression of a package: what `convert --report FILE.json` writes."""

    schema: Annotated[int, "Version of this format.", {"const": COMPRESSION_SCHEMA}] = COMPRESSION_SCHEMA
    package: Annotated[str, "Name of the package."]
    bytes: Annotated[int, "Size of the package."]
    scheme: Annotated[str, "Format or budget asked for."]
    calibrated_with: Annotated[int, "Number of images for calibration."]
    tested_with: Annotated[int, "Number of other images for the test."]
    quality: Quality
    curve: Annotated[
        tuple[Point, ...],
        "Choices scored in PyTorch for a budget, sizes predicted, and the package as it was measured.",
    ]
    layers: Annotated[tuple[StoredLayer, ...], "Layers that could be compressed."]
    left: Annotated[Mapping[str, str], "Layers kept in fp16, with the reason."]
