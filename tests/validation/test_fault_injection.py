"""The validator against packages that were spoilt on purpose: it fails each, and names the operation."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilevit_coreml.errors import MobileViTError
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.validation.gates import FAIL, PASS
from mobilevit_coreml.validation.run import Validation, validate
from tests.validation.fault_injection import PACKAGES, SABOTAGES, UNSEEN, Sabotage
from tests.validation.in_process import InProcess

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
INSIDE = [sabotage for sabotage in SABOTAGES if sabotage.departs is not None]
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
def validated(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Validation]:
    monkeypatch.setattr("mobilevit_coreml.validation.run.Worker", InProcess)
    return lambda package: validate(package, images=photographs, backend="reference")


def spoilt(sabotage: Sabotage, packages: Packages, directory: Path) -> Path:
    package = packages(sabotage.package)
    copy = shutil.copytree(package, directory / package.name)
    sabotage.apply(copy)
    return copy


def names(sabotage: Sabotage) -> str:
    return sabotage.name.replace(" ", "_")


def test_the_table() -> None:
    kinds = [sabotage.name for sabotage in (*SABOTAGES, *UNSEEN)]
    assert len(set(kinds)) == len(kinds)
    assert {sabotage.package for sabotage in SABOTAGES} == set(PACKAGES)
    assert {sabotage.name for sabotage in SABOTAGES if sabotage.departs is None} == set(OUTSIDE)
    assert len(SABOTAGES) >= 25


@pytest.mark.parametrize("name", PACKAGES)
def test_good_packages_pass(name: str, packages: Packages, validated: Callable[[Path], Validation]) -> None:
    validation = validated(packages(name))
    assert all(check.passed for _, check in validation.checks)
    assert all(program.departure is None for program in validation.programs.values())
    # drawn weights in few bits, for which nothing was calibrated, are of no use, and that is not what is tested here
    assert validation.verdict == PASS or validation.record.compression


@pytest.mark.parametrize("sabotage", INSIDE, ids=names)
def test_the_operation_that_departs_is_named(
    sabotage: Sabotage, packages: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    validation = validated(spoilt(sabotage, packages, tmp_path))
    assert validation.verdict == FAIL
    (program,) = validation.programs.values()
    assert sabotage.departs is not None
    assert program.departure is not None
    assert program.departure.operation in sabotage.departs


@pytest.mark.parametrize("sabotage", [one for one in SABOTAGES if one.departs is None], ids=names)
def test_what_is_declared_wrongly_is_named(
    sabotage: Sabotage, packages: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    package = spoilt(sabotage, packages, tmp_path)
    failing = OUTSIDE[sabotage.name]
    if failing is None:
        with pytest.raises(MobileViTError, match="weights"):
            validated(package)
        return
    validation = validated(package)
    assert validation.verdict == FAIL
    assert failing in [check.name for _, check in validation.checks if not check.passed]


@pytest.mark.parametrize("sabotage", UNSEEN, ids=names)
def test_what_cannot_be_seen(
    sabotage: Sabotage, packages: Packages, validated: Callable[[Path], Validation], tmp_path: Path
) -> None:
    package = spoilt(sabotage, packages, tmp_path)
    before, after = validated(packages(sabotage.package)), validated(package)
    assert before.digest != after.digest
    assert after.verdict == PASS
