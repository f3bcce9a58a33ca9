"""Operations and the modules they are named after."""

import pytest

from mobilevit_coreml.operation_names import belongs_to, module_of, operation_name

PATHS = ["backbone", "backbone.stage1", "backbone.stage1.1.conv", "backbone.stage1.10.conv", "classifier"]


def test_an_operation_has_the_path_of_its_module_without_the_backbone() -> None:
    assert [operation_name(path) for path in PATHS] == ["", "stage1", "stage1_1_conv", "stage1_10_conv", "classifier"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("stage1_1_conv", "backbone.stage1.1.conv"),
        ("stage1_10_conv_add_2", "backbone.stage1.10.conv"),
        ("stage1_2_conv", "backbone.stage1"),
        ("stage12", ""),
        ("input_cast", ""),
    ],
)
def test_the_longest_path_is_the_module_of_an_operation(name: str, path: str) -> None:
    assert module_of(name, PATHS) == path
    assert [other for other in PATHS if belongs_to(name, other)] == [
        p for p in PATHS[1:] if path and path.startswith(p)
    ]
