"""That each sabotage does what its row says: the package still runs, and departs where it should."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilevit_coreml.images import drawn_images
from mobilevit_coreml.reference import ReferenceEvaluator
from mobilevit_coreml.reference.features import to_program
from mobilevit_coreml.reference.program import Ref, read_specification
from tests.validate.sabotage import PACKAGES, PREVIEW, SABOTAGES, UNSEEN, Sabotage

DEPARTS = 1e-3  # of an operation's result, relative to its size: more is another result
RECORD = "mobilevit_coreml."
INSIDE = [sabotage for sabotage in SABOTAGES if sabotage.departs is not None]
# What changes of a package's declarations and metadata, by the name of the sabotage outside the network.
OUTSIDE = {
    "labels one later": "labels",
    "two labels exchanged": "labels",
    "preview's colours one later": PREVIEW,
    "preview's labels one later": PREVIEW,
    "preview left out": PREVIEW,
    "record's labels one later": f"{RECORD}labels",
    "two of the record's colours exchanged": f"{RECORD}colors",
    "output called otherwise": "outputs",
    "input called otherwise": "inputs",
    "output declared as float16": "outputs",
    "an output not declared": "outputs",
    "predicted feature of another name": "predicted",
    "record's channel order RGB": f"{RECORD}preprocessing",
    "record's channel order for readers RGB": f"{RECORD}channel_order",
    "record's scale doubled": f"{RECORD}preprocessing",
    "record's variant xs": f"{RECORD}variant",
    "record's heads 2": f"{RECORD}config",
    "record's activation relu": f"{RECORD}config",
    "record's epsilon 1e-2": f"{RECORD}config",
    "record's rates exchanged": f"{RECORD}config",
    "record's output logits": f"{RECORD}outputs",
    "digest of other weights": f"{RECORD}weights",
    "another seed": f"{RECORD}weights",
    "untrained, and not said": f"{RECORD}untrained",
    "record without its weights": f"{RECORD}weights",
}


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a package computes of one picture, operation by operation, and what it says."""

    values: Mapping[str, Any]  # in the order of the program
    facts: Mapping[str, Any]


def observe(package: Path, precision: str = "fp16") -> Observed:
    evaluator = ReferenceEvaluator(package, precision)
    ((name, feature),) = evaluator.inputs.items()
    height, width = feature.shape
    (picture,) = drawn_images(height, width, count=1)
    values = evaluator.values(to_program(evaluator.inputs, {name: picture}), capture=True)
    names = [output for operation in evaluator.function.operations for output in operation.outputs]
    description = read_specification(package).description
    labels = next((op.inputs["classes"] for op in evaluator.function.operations if op.type == "classify"), None)
    assert not isinstance(labels, Ref)
    facts = {
        "inputs": dict(evaluator.inputs),
        "outputs": dict(evaluator.outputs),
        "labels": labels,
        "predicted": description.predictedFeatureName,
        **evaluator.metadata,
    }
    return Observed({name: values[name] for name in names}, facts)


def departure(good: Any, bad: Any) -> float:
    """How far a result is from another, relative to its size; of integers the share that differ."""
    if not isinstance(good, Tensor):
        return 0.0 if good == bad else math.inf
    if good.shape != bad.shape or not bad.isfinite().all():
        return math.inf
    if not good.is_floating_point():
        return float((good != bad).double().mean())
    return float((good.double() - bad.double()).norm() / good.double().norm())


def departures(good: Observed, bad: Observed) -> dict[str, float]:
    """How far the operations are apart that both have, in the order of the good program; those that are equal apart."""
    both = {name: departure(value, bad.values[name]) for name, value in good.values.items() if name in bad.values}
    return {name: distance for name, distance in both.items() if distance}


Packages = Callable[[str], tuple[Path, Observed]]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The good package of a name and what it does, made when first asked for."""
    directory = tmp_path_factory.mktemp("good")
    made: dict[str, tuple[Path, Observed]] = {}

    def package(name: str) -> tuple[Path, Observed]:
        if name not in made:
            path = PACKAGES[name](directory)
            made[name] = path, observe(path)
        return made[name]

    return package


def sabotaged(sabotage: Sabotage, packages: Packages, directory: Path) -> tuple[Observed, Path]:
    """What the good package does, and a spoilt copy of it."""
    path, good = packages(sabotage.package)
    copy = directory / path.name
    shutil.copytree(path, copy)
    sabotage.apply(copy)
    assert {file.name: file.read_bytes() for file in path.rglob("*.*") if file.is_file()} != {
        file.name: file.read_bytes() for file in copy.rglob("*.*") if file.is_file()
    }
    return good, copy


def names(sabotage: Sabotage) -> str:
    return sabotage.name.replace(" ", "_")


def test_there_are_many_kinds_of_sabotage() -> None:
    assert len({sabotage.name for sabotage in (*SABOTAGES, *UNSEEN)}) == len(SABOTAGES) + len(UNSEEN)
    assert {sabotage.package for sabotage in SABOTAGES} == set(PACKAGES)
    assert {sabotage.name for sabotage in SABOTAGES if sabotage.departs is None} == set(OUTSIDE)
    assert len(INSIDE) >= 36


@pytest.mark.parametrize("sabotage", INSIDE, ids=names)
def test_the_network_departs_first_where_it_was_sabotaged(
    sabotage: Sabotage, packages: Packages, tmp_path: Path
) -> None:
    good, copy = sabotaged(sabotage, packages, tmp_path)
    apart = departures(good, observe(copy))
    first = next((name for name, distance in apart.items() if distance > DEPARTS), None)
    assert sabotage.departs is not None
    assert first in sabotage.departs
    assert next(iter(apart)) == first  # nothing before it has changed at all


@pytest.mark.parametrize("sabotage", [sabotage for sabotage in SABOTAGES if sabotage.departs is None], ids=names)
def test_outside_the_network_only_what_is_named_changes(sabotage: Sabotage, packages: Packages, tmp_path: Path) -> None:
    good, copy = sabotaged(sabotage, packages, tmp_path)
    bad = observe(copy)
    keys = good.facts.keys() | bad.facts.keys()
    assert {key for key in keys if good.facts.get(key) != bad.facts.get(key)} == {OUTSIDE[sabotage.name]}
    assert set(departures(good, bad)) <= {"classLabel", "classLabel_probs"}


@pytest.mark.parametrize("sabotage", UNSEEN, ids=names)
def test_what_is_not_seen_computes_the_same(sabotage: Sabotage, packages: Packages, tmp_path: Path) -> None:
    _, copy = sabotaged(sabotage, packages, tmp_path)
    # in half precision the rounding of everything behind it makes more of the lowest bit of a weight than it is
    good, bad = observe(packages(sabotage.package)[0], "fp32"), observe(copy, "fp32")
    numbers = {name: apart for name, apart in departures(good, bad).items() if name != "classLabel_probs"}
    assert all(distance <= DEPARTS for distance in numbers.values())


def test_the_good_packages_are_repeatable(packages: Packages) -> None:
    path, good = packages("classifier")
    assert not departures(good, observe(path))
    assert all(value.isfinite().all() for value in good.values.values() if isinstance(value, torch.Tensor))
