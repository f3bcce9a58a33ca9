from pathlib import Path

import pytest

from mobilevit_coreml.errors import OutputError
from mobilevit_coreml.package.files import (
    check_free,
    check_output,
    package_name,
    package_path,
    put_in_place,
    save,
    size_of,
    staging,
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

    with pytest.raises(OutputError, match="expected room for the package, got could not write to stream; free some"):
        save(FullDisk(), tmp_path / "staging" / "x.mlpackage")


def test_a_finished_package_is_the_only_thing_left(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    with staging(path) as staged:
        write_package(staged)
        assert staged.parent.parent == tmp_path  # so that the rename stays on one file system
        put_in_place(staged, path, force=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]
    assert size_of(path) == 3 + 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_a_failed_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    with pytest.raises(error), staging(path) as staged:  # noqa: PT012
        write_package(staged)
        raise error
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]
    assert (path / "Data" / "weight.bin").read_text() == "old"


def test_force_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    with staging(path) as staged:
        write_package(staged)
        put_in_place(staged, path, force=True)
    assert (path / "Data" / "weight.bin").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]


def test_a_name_taken_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    with pytest.raises(OutputError, match="got something another run put there meanwhile"), staging(path) as staged:  # noqa: PT012
        write_package(staged)
        write_package(path, "somebody else's")
        put_in_place(staged, path, force=False)
    assert (path / "Data" / "weight.bin").read_text() == "somebody else's"


def test_when_the_last_rename_fails_the_old_package_is_back(tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    write_package(path, "old")
    with pytest.raises(OutputError), staging(path) as staged:
        put_in_place(staged, path, force=True)  # nothing was staged
    assert (path / "Data" / "weight.bin").read_text() == "old"


def test_a_place_that_cannot_be_written_to() -> None:
    # /proc refuses even root
    path = Path("/proc/x.mlpackage")
    if not path.parent.is_dir():
        path = Path("/System/x.mlpackage")
    with pytest.raises(OutputError, match="expected a directory to write to, got "), staging(path):
        pass
