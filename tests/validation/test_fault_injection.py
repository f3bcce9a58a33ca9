"""The validator against faulty packages (fault injection): it fails each, and names the operation."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.metrics import FAIL, PASS
from mobilevit_coreml.validation.run import Validation, validate
from tests.validation.fault_injection import CHECKPOINTS, FAMILIES, FAULTS, MISREADINGS, PACKAGES, UNSEEN, Fault

# What fails of those outside the network; None where the record leads to no weights, or to others, which is an error
OUTSIDE = {
    "labels one later": "labels",
    "two labels exchanged": "labels",
    "preview's colours one later": "preview",
    "preview's labels one later": "preview",
    "preview left out": "preview",
    "record's labels one later": "record",
    "two of the record's colours exchanged": "record",
    "output renamed": "outputs",
    "input renamed": "input",
    "output declared as float16": "outputs",
    "an output not declared": "outputs",
    "record's resize": "record",
    "record's interpolation": "record",
    "predicted feature of another name": "outputs",
    "record's channel order RGB": "record",
    "record's channel order for readers RGB": "record",
    "record's scale doubled": "record",
    "record's variant xs": "record",
    "record's heads 2": "record",
    "record's activation relu": "record",
    "record's epsilon 1e-2": "record",
    "record's rates exchanged": "record",
    "record's output logits": "outputs",
    "untrained, not recorded": "record",
    "digest of other weights": None,
    "another seed": None,
    "record without its weights": None,
}
# One of each family, which the default tests inject; `pytest -m slow` has all others.
DEFAULT = (
    "channels declared as RGB",
    "weight zeroed",
    "softmax left out",
    "gelu for silu",
    "unfold as a reshape",
    "smallest for largest",
    "table shuffled",
    "labels one later",
    "digest of other weights",
    "order of two operations",
)
PACKAGES_BY_DEFAULT = ("classifier", "segmenter", "palettized")
Packages = Callable[[str], Path]


def params(faults: Iterable[Fault]) -> list[Any]:
    return [
        pytest.param(fault, id=fault.name.replace(" ", "_"), marks=() if fault.name in DEFAULT else pytest.mark.slow)
        for fault in faults
    ]


@pytest.fixture
def validated(one_image: Path) -> Callable[[Path], Validation]:
    return lambda package: validate(package, images=one_image, backend="reference")


def faulty(fault: Fault, good_package: Packages, directory: Path) -> Path:
    package = good_package(fault.package)
    copy = shutil.copytree(package, directory / package.name)
    fault.apply(copy)
    return copy


def test_the_table() -> None:
    kinds = [fault.name for fault in (*FAULTS, *UNSEEN)]
    assert len(set(kinds)) == len(kinds)
    assert {fault.package for fault in FAULTS} == set(PACKAGES)
    assert {fault.name for fault in FAULTS if fault.mismatch is None} == set(OUTSIDE)
    assert len(FAULTS) == 137
    for family, faults in {**FAMILIES, "unseen": UNSEEN}.items():
        assert {fault.name for fault in faults} & set(DEFAULT), family
    assert {fault.package for fault in FAULTS if fault.name in DEFAULT} == set(PACKAGES_BY_DEFAULT)
    # these are injected in test_framework.py
    assert len({misreading.name for misreading in MISREADINGS}) == len(MISREADINGS) == 30
    assert {misreading.checkpoint for misreading in MISREADINGS} == set(CHECKPOINTS)


@pytest.mark.parametrize(
    "name", [name if name in PACKAGES_BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in PACKAGES]
)
def test_good_packages_pass(name: str, good_package: Packages, validated: Callable[[Path], Validation]) -> None:
    validation = validated(good_package(name))
    assert not any(check.passed is False for _, check in validation.checks)
    assert all(program.mismatch is None for program in validation.programs.values())
    # random weights in few bits, without calibration, are of no use, which is not tested here
    assert validation.verdict == PASS or validation.record.compression


@pytest.mark.parametrize("fault", params(fault for fault in FAULTS if fault.mismatch is not None))
def test_the_first_mismatch_is_named(
    fault: Fault, good_package: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    validation = validated(faulty(fault, good_package, tmp_path))
    assert validation.verdict == FAIL
    (program,) = validation.programs.values()
    assert fault.mismatch is not None
    assert program.mismatch is not None
    assert program.mismatch.operation in fault.mismatch


@pytest.mark.parametrize("fault", params(fault for fault in FAULTS if fault.mismatch is None))
def test_wrong_declarations_are_named(
    fault: Fault, good_package: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    package = faulty(fault, good_package, tmp_path)
    failing = OUTSIDE[fault.name]
    if failing is None:
        with pytest.raises(MobileViTError, match="weights"):
            validated(package)
        return
    validation = validated(package)
    assert validation.verdict == FAIL
    assert failing in [check.name for _, check in validation.checks if check.passed is False]


@pytest.mark.parametrize("fault", params(UNSEEN))
def test_changes_without_effect_pass(
    fault: Fault, good_package: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    package = faulty(fault, good_package, tmp_path)
    before, after = validated(good_package(fault.package)), validated(package)
    assert before.digest != after.digest
    assert after.verdict == PASS
