"""The fidelity that a package is going to have, predicted in PyTorch without building it."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mobilevit_coreml.config import Task
from mobilevit_coreml.metrics import Fidelity, Meters
from mobilevit_coreml.mil.export import CLASSIFIER_OUTPUTS, segmentation_output
from mobilevit_coreml.model import Model
from mobilevit_coreml.options import Precision
from mobilevit_coreml.package.interface import CLASS_PROBABILITIES, names_classes, output_names
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.verification import CLASSIFIER, HEAD, compare


def scorer(
    model: Model, record: PackageRecord, preprocessing: Preprocessing, images: Iterable[Image.Image]
) -> Callable[[Model], Fidelity]:
    """A function from a model with the weights that a package stores to the package's fidelity to `model`.

    On RGB images of preprocessing.input_size. In an fp16 package everything is rounded as it is there, but for the
    operations that the conversion fuses: some hundredths of a dB.
    """
    rounds = record.precision == Precision.FP16
    pixels = [torch.from_numpy(preprocessing.pixels(image)) for image in images]
    with torch.inference_mode():
        results = [model(x) for x in pixels]

    @torch.inference_mode()
    def score(stored: Model) -> Fidelity:
        meters = Meters()
        if rounds:
            stored = copy.deepcopy(stored).half().float()
        for x, result in zip(pixels, results, strict=True):
            with RoundingToHalf() if rounds else contextlib.nullcontext():
                outputs = package_outputs(record, stored, stored(_half(x) if rounds else x))
            meters.merge(compare(record, model, result, outputs))
        return meters.fidelity({})

    return score


class RoundingToHalf(TorchDispatchMode):
    """Within it the float32 result of every operation is rounded to float16, and stays float32."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and round its results."""
        result = operation(*args, **(kwargs or {}))
        return result if operation.is_view else tree_map_only(Tensor, _half, result)


def _half(x: Tensor) -> Tensor:
    return x.half().float() if x.dtype == torch.float32 else x


def package_outputs(record: PackageRecord, model: Model, result: Any) -> dict[str, Any]:
    """The outputs of a package for a model's result for one image, and the logits by the names that `compare` knows."""
    if record.task == Task.CLASSIFICATION:
        output = CLASSIFIER_OUTPUTS[record.outputs.type](result.logits)
        if not names_classes(record.task, record.outputs):
            return {output_names(record.task, record.outputs)[0]: output.numpy()}
        return {CLASS_PROBABILITIES: dict(enumerate(output[0].tolist())), CLASSIFIER: result.logits.numpy()}
    names = output_names(record.task, record.outputs)
    if record.task == Task.SEGMENTATION:
        output = segmentation_output(result.logits, record.outputs, model.config)
        return {HEAD: result.logits.numpy(), names[0]: output.numpy()}
    values = (result.pooled, result.feature_map, *result.hidden_states)
    return {name: value.numpy() for name, value in zip(names, values, strict=False)}  # the stages may be left out
