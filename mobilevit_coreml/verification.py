"""The outputs of a saved package against the PyTorch model's, by the reference evaluator, on any machine."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit_coreml.config import CLASSIFICATION, FEATURES, MULTI_LABEL, SEGMENTATION, SINGLE_LABEL
from mobilevit_coreml.metrics import (
    MIN_PROBABILITY,
    Fidelity,
    LabelsMeter,
    MaskMeter,
    Meters,
    RankingMeter,
    SignalMeter,
)
from mobilevit_coreml.mil.export import CLASSIFIER_OUTPUTS, segmentation_output
from mobilevit_coreml.model import Model
from mobilevit_coreml.package.interface import (
    CLASS_PROBABILITIES,
    IMAGE,
    LABELS,
    LOGITS,
    MASK,
    NETWORK,
    SCORES,
    OutputOptions,
    names_classes,
    output_names,
)
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.reference import ReferenceEvaluator

CLASSIFIER, HEAD = "classifier", "head_classifier"  # the logits: operations are named after their modules
LOG_PROBABILITIES = "log-probabilities"  # a classifier's logits as far as its probabilities tell
MIN_SIGNIFICANT_PROBABILITY = 16 * MIN_PROBABILITY  # a probability below it has less than four bits left in fp16


@torch.inference_mode()
def verify(
    package: Path,
    model: Model,
    record: PackageRecord,
    preprocessing: Preprocessing,
    images: Iterable[Image.Image],
    function_name: str | None,
    gates: Mapping[str, float],
) -> Fidelity:
    """Run a function of a saved package, and a model, on RGB images of preprocessing.input_size."""
    evaluator = ReferenceEvaluator(package, record.precision, function_name)
    captured = network_outputs(record)
    meters = Meters()
    for image in images:
        result = model(torch.from_numpy(preprocessing.pixels(image)))
        outputs = evaluator.run({IMAGE: image}, capture=captured)
        meters.merge(compare(record, model, result, outputs))
    return meters.fidelity(gates)


def network_outputs(record: PackageRecord) -> list[str]:
    """Operations to capture beside the outputs: the network's own results, before they become the package's outputs."""
    if names_classes(record.task, record.outputs):
        return [CLASSIFIER]
    if record.task == SEGMENTATION and not _outputs_logits(record.outputs):
        return [HEAD]
    return []


def compare(record: PackageRecord, model: Model, result: Any, outputs: Mapping[str, Any]) -> Meters:
    """Meters of one image: the model's result against a package's outputs, with `network_outputs` where there are any.

    A classifier's probabilities have to be in the order of its classes.
    """
    meters = Meters(1)
    if record.task == CLASSIFICATION:
        _compare_classes(meters, record, result.logits, outputs)
    elif record.task == SEGMENTATION:
        _compare_masks(meters, model, record.outputs, result.logits, outputs)
    else:
        values = (result.pooled, result.feature_map, *result.hidden_states)
        names = output_names(FEATURES, record.outputs)
        for name, value in zip(names, values, strict=False):  # the stages may be left out
            _signal(meters, name, value, torch.from_numpy(outputs[name]))
    return meters


def _compare_classes(meters: Meters, record: PackageRecord, logits: Tensor, outputs: Mapping[str, Any]) -> None:
    """Logits, as far as they can be had, and the probabilities that follow from them, or are outputs."""
    problem = record.config.get("problem_type", SINGLE_LABEL)
    activation = CLASSIFIER_OUTPUTS[SCORES if problem == MULTI_LABEL else LABELS]
    if names_classes(record.task, record.outputs):
        expected, got = activation(logits)[0], torch.tensor(list(outputs[CLASS_PROBABILITIES].values()))
        if CLASSIFIER in outputs:
            _signal(meters, LOGITS, logits, torch.from_numpy(outputs[CLASSIFIER]))
        else:
            _signal(meters, LOG_PROBABILITIES, _centred_logarithms(expected), _centred_logarithms(got))
    else:
        (name,) = output_names(record.task, record.outputs)
        output = torch.from_numpy(outputs[name]).float()
        _signal(meters, name, logits, output)
        expected, got = activation(logits)[0], activation(output)[0]
    if problem == MULTI_LABEL:
        meters.labels = LabelsMeter()
        meters.labels.add(expected, got)
    elif problem == SINGLE_LABEL:
        meters.ranking = RankingMeter()
        meters.ranking.add(expected, got)


def _centred_logarithms(probabilities: Tensor) -> Tensor:
    """Logits without their mean; of improbable classes the least logarithm that fp16 has four bits of."""
    logarithms = probabilities.double().clamp(min=MIN_SIGNIFICANT_PROBABILITY).log()
    return logarithms - logarithms.mean()


def _compare_masks(
    meters: Meters, model: Model, options: OutputOptions, logits: Tensor, outputs: Mapping[str, Any]
) -> None:
    (name,) = output_names(SEGMENTATION, options)
    if _outputs_logits(options):
        _signal(meters, LOGITS, logits, torch.from_numpy(outputs[name]))
    elif HEAD in outputs:
        _signal(meters, LOGITS, logits, torch.from_numpy(outputs[HEAD]))
    if options.type not in (LABELS, MASK) and not _outputs_logits(options):
        _signal(meters, "output", segmentation_output(logits, options, model.config), torch.from_numpy(outputs[name]))
    meters.masks = MaskMeter(model.config.num_labels)
    meters.masks.add(*class_maps(model, options, logits, outputs))


def class_maps(
    model: Model, options: OutputOptions, logits: Tensor, outputs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Class indices (H, W) of a segmenter's logits and of a package's output, of the output's size."""
    (name,) = output_names(SEGMENTATION, options)
    expected, output = segmentation_output(logits, options, model.config), torch.from_numpy(np.array(outputs[name]))
    if options.type not in (LABELS, MASK):
        expected, output = expected.argmax(1), output.argmax(1)
    size = expected.shape[-2:]
    return expected.reshape(size), output.reshape(size)


def _outputs_logits(options: OutputOptions) -> bool:
    return (options.type, options.size) == (LOGITS, NETWORK)


def _signal(meters: Meters, name: str, reference: Tensor, output: Tensor) -> None:
    meters.signals[name] = SignalMeter()
    meters.signals[name].add(reference, output)
