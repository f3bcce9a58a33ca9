from pathlib import Path

import pytest

from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.package.files import (
    check_free,
    check_output,
    package_name,
    package_path,
    save,
    size_of,
)


def write_package(path: Path, content: str = "new") -> None:
    (path / "Data").mkdir(parents=True)
    (path / "Manifest.json").write_text("{}")
    (path / "Data" / "weight.bin").write_text(content)


@pytest.mark.parametrize(
    ("task", "variant", "precision", "name"),
    [
        ("classification", "xs", "fp16", "MobileViT_XS_fp16"),
        ("classification", "custom", "fp32", "MobileViT_Custom_fp32"),
        ("segmentation", "s", "fp16", "DeepLabV3_MobileViT_S_fp16"),
        ("features", "xxs", "fp16", "MobileViT_XXS_features_fp16"),
    ],
)
def test_default_names_are_swift_class_names(task: str, variant: str, precision: str, name: str) -> None:
    assert package_name(task, variant, precision) == name
    assert name.isidentifier()


def test_where_packages_go(tmp_path: Path) -> None:
    assert package_path(None, "Name", untrained=False) == Path("Name.mlpackage")
    assert package_path(None, "Name", untrained=True) == Path("Name_untrained.mlpackage")
    assert package_path(tmp_path, "Name", untrained=False) == tmp_path / "Name.mlpackage"
    mine = tmp_path / "mine.mlpackage"
    assert package_path(mine, "Name", untrained=False) == mine
    assert package_path(mine, "Name", untrained=True) == tmp_path / "mine_untrained.mlpackage"
    mine = tmp_path / "mine_untrained.mlpackage"
    assert package_path(mine, "Name", untrained=True) == mine


def test_output_that_cannot_be(tmp_path: Path) -> None:
    for output, message in (
        (tmp_path / "x.mlmodel", "expected a name ending in .mlpackage or an existing directory, got neither"),
        (
            tmp_path / "none" / "x.mlpackage",
            f"expected {tmp_path / 'none'} to be a directory, got none there; create it",
        ),
    ):
        with pytest.raises(OutputError) as error:
            check_output(output)
        assert str(error.value).startswith(f"output {output}: {message}")


def test_a_taken_name_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    check_free(path, force=False)
    write_package(path)
    with pytest.raises(OutputError, match="expected a free name, got an existing package; add --force to replace it"):
        check_free(path, force=False)
    check_free(path, force=True)


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_package_is_never_replaced(tmp_path: Path, kind: str, force: bool) -> None:
    path = tmp_path / "x.mlpackage"
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="expected a free name or a package, got something else; move it away"):
        check_free(path, force)


def test_no_room_for_a_package(tmp_path: Path) -> None:
    class FullDisk:
        def save(self, path: str) -> None:
            raise RuntimeError("could not write\nto stream")

    with pytest.raises(OutputError) as error:
        save(FullDisk(), tmp_path / ".staging" / "x.mlpackage")
    path = tmp_path / "x.mlpackage"
    assert str(error.value) == f"cannot write {path}: could not write to stream; make room or choose another place"


def test_a_size_is_the_sum_of_the_files(tmp_path: Path) -> None:
    write_package(tmp_path / "x.mlpackage")
    assert size_of(tmp_path / "x.mlpackage") == 3 + 2
