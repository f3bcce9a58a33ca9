"""The validator against faulty packages (fault injection): it fails each, and names the operation."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.metrics import FAIL, PASS
from mobilevit_coreml.validation.run import Validation, validate
from tests.validation.fault_injection import FAULTS, PACKAGES, UNSEEN, Fault

# What fails of those outside the network; None where the record leads to no weights, or to others, which is an error
OUTSIDE = {
    "labels one later": "labels",
    "two labels exchanged": "labels",
    "preview's colours one later": "preview",
    "preview's labels one later": "preview",
    "preview left out": "preview",
    "record's labels one later": "record",
    "two of the record's colours exchanged": "record",
    "output called otherwise": "outputs",
    "input called otherwise": "input",
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
    "untrained, and not said": "record",
    "digest of other weights": None,
    "another seed": None,
    "record without its weights": None,
}
INSIDE = [fault for fault in FAULTS if fault.departs is not None]
Packages = Callable[[str], Path]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The good package of a name, made when first asked for."""
    directory = tmp_path_factory.mktemp("good")
    made: dict[str, Path] = {}

    def package(name: str) -> Path:
        if name not in made:
            made[name] = PACKAGES[name](directory)
        return made[name]

    return package


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(synthetic_images(160, 160, 1)):
        image.save(directory / f"{index}.png")
    return directory


@pytest.fixture
def validated(photographs: Path) -> Callable[[Path], Validation]:
    return lambda package: validate(package, images=photographs, backend="reference")


def faulty(fault: Fault, packages: Packages, directory: Path) -> Path:
    package = packages(fault.package)
    copy = shutil.copytree(package, directory / package.name)
    fault.apply(copy)
    return copy


def names(fault: Fault) -> str:
    return fault.name.replace(" ", "_")


def test_the_table() -> None:
    kinds = [fault.name for fault in (*FAULTS, *UNSEEN)]
    assert len(set(kinds)) == len(kinds)
    assert {fault.package for fault in FAULTS} == set(PACKAGES)
    assert {fault.name for fault in FAULTS if fault.departs is None} == set(OUTSIDE)
    assert len(FAULTS) >= 25


@pytest.mark.parametrize("name", PACKAGES)
def test_good_packages_pass(name: str, packages: Packages, validated: Callable[[Path], Validation]) -> None:
    validation = validated(packages(name))
    assert all(check.passed for _, check in validation.checks)
    assert all(program.mismatch is None for program in validation.programs.values())
    # drawn weights in few bits, for which nothing was calibrated, are of no use, and that is not what is tested here
    assert validation.verdict == PASS or validation.record.compression


@pytest.mark.parametrize("fault", INSIDE, ids=names)
def test_the_operation_that_departs_is_named(
    fault: Fault, packages: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    validation = validated(faulty(fault, packages, tmp_path))
    assert validation.verdict == FAIL
    (program,) = validation.programs.values()
    assert fault.departs is not None
    assert program.mismatch is not None
    assert program.mismatch.operation in fault.departs


@pytest.mark.parametrize("fault", [one for one in FAULTS if one.departs is None], ids=names)
def test_what_is_declared_wrongly_is_named(
    fault: Fault, packages: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    package = faulty(fault, packages, tmp_path)
    failing = OUTSIDE[fault.name]
    if failing is None:
        with pytest.raises(MobileViTError, match="weights"):
            validated(package)
        return
    validation = validated(package)
    assert validation.verdict == FAIL
    assert failing in [check.name for _, check in validation.checks if not check.passed]


@pytest.mark.parametrize("fault", UNSEEN, ids=names)
def test_what_cannot_be_seen(
    fault: Fault, packages: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    package = faulty(fault, packages, tmp_path)
    before, after = validated(packages(fault.package)), validated(package)
    assert before.digest != after.digest
    assert after.verdict == PASS
