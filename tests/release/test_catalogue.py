"""The catalogue for people, and the README's table of packages, which is what the committed catalogue makes."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.checkpoints.source import WeightsSource
from mobilevit_coreml.compression.schemes import Budget
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.release.catalogue import (
    BEGIN,
    END,
    FAIL,
    MEASURED,
    PASS,
    README,
    Report,
    entry_of,
    figures_text,
    page,
    read_catalogue,
    read_report,
    readme_table,
    rewrite,
    with_table,
    write_catalogue,
)
from mobilevit_coreml.release.recipe import load_recipes
from mobilevit_coreml.strict_json import to_json

REPORT = Report(
    recipe="xxs_fp16",
    package="MobileViT_XXS_fp16.mlpackage",
    bytes=2_680_000,
    operations=331,
    weights=WeightsSource("apple/mobilevit-xx-small", "", revision="r", sha256="abc"),
    sha256="def",
    sizes={"main": (256, 256)},
    fidelity={"main": {"figures": {"snr": 53.19, "top1": 1.0}}},
)
XXS = load_recipes()["xxs_fp16"]
TRAINED = entry_of(XXS, PASS, "", REPORT)
UNTRAINED = entry_of(
    XXS, PASS, "", dataclasses.replace(REPORT, untrained=True, weights=WeightsSource("untrained", "", seed=0))
)
FAILED = entry_of(XXS, FAIL, "a | b", None)


def test_an_entry() -> None:
    assert TRAINED.outputs == ["classLabel_probs"]
    assert TRAINED.fidelity == {"main": {"snr": 53.19, "top1": 1.0}}
    assert TRAINED.weights == REPORT.weights
    assert TRAINED.stored == "fp16"


def test_reports_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(to_json(REPORT))
    assert read_report(tmp_path) == REPORT
    (tmp_path / "report.json").write_bytes(to_json(dataclasses.replace(REPORT, schema=2)))
    assert read_report(tmp_path) is None


def test_a_page_says_what_is_untrained_and_what_went_wrong(tmp_path: Path) -> None:
    text = page([TRAINED])
    assert "| 2.68 MB | 331 | 53.1 dB, top-1 100% | apple/mobilevit-xx-small, `abc` | `def` |" in text
    assert "UNTRAINED" not in text
    assert "Errors" not in text
    text = page([UNTRAINED, FAILED])
    assert "**UNTRAINED**, seed 0" in text
    assert text.endswith("## Errors\n\n- xxs_fp16: FAIL, a \\| b\n")
    write_catalogue(tmp_path, [TRAINED, FAILED])
    assert read_catalogue(tmp_path / "catalogue.json") == [TRAINED, FAILED]
    values = json.loads((tmp_path / "catalogue.json").read_text())["packages"]
    assert values[0]["sizes"] == {"main": [256, 256]}
    assert values[1].keys() == {
        *("name", "verdict", "error", "task", "variant", "target", "stored", "outputs", "notes")
    }


def test_the_readme_claims_nothing_of_weights_that_were_not_there() -> None:
    assert "| 2.68 MB | 331 | iOS16 | 53.1 dB, top-1 100% |" in readme_table([TRAINED])
    text = readme_table([UNTRAINED])
    assert "| 2.68 MB | 331 | iOS16 | unmeasured |" in text
    assert "dB" not in text
    assert "all of these packages" in text
    assert "weights of the real shapes: xxs_fp16." in readme_table([TRAINED, UNTRAINED])
    assert "|  |  | iOS16 | unmeasured |" in readme_table([FAILED])


@pytest.mark.parametrize(
    ("fidelity", "text"),
    [
        ({"a": {"snr": 60.0}, "b": {"snr": 29.99, "pixels": 0.5}}, "29.9 dB, pixels 50%"),
        ({"a": {"snr": math.inf, "top1": 1.0}}, "top-1 100%"),
        ({"a": {"pixels": 0.97999}}, "pixels 97.99%"),
        ({}, "unmeasured"),
    ],
)
def test_figures_are_rounded_down(fidelity: dict[str, dict[str, float]], text: str) -> None:
    assert figures_text(dataclasses.replace(TRAINED, fidelity=fidelity)) == text


def test_figures_of_a_compressed_package_are_of_its_quality() -> None:
    assert figures_text(dataclasses.replace(TRAINED, quality={"main": {"snr": 20.0}})) == "20.0 dB"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_readmes_without_a_place(text: str, tmp_path: Path) -> None:
    assert with_table(text, "table") is None
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(InputError, match="got no such place; add them"):
        rewrite(tmp_path / "README.md", MEASURED)


def test_a_readme_is_written_once(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_catalogue(tmp_path, [TRAINED])
    assert rewrite(readme, tmp_path / "catalogue.json")
    assert not rewrite(readme, tmp_path / "catalogue.json")
    assert readme.read_text() == f"before\n{BEGIN}\n\n{readme_table([TRAINED])}\n\n{END}\nafter\n"


@pytest.mark.parametrize("values", [[], {"schema": 2, "packages": []}, {"schema": 1}, {"schema": 1, "packages": [{}]}])
def test_catalogues_that_are_none(tmp_path: Path, values: Any) -> None:
    (tmp_path / "README.md").write_text(BEGIN + END)
    (tmp_path / "catalogue.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="catalogue.json: .*; make it again with --all"):
        rewrite(tmp_path / "README.md", tmp_path / "catalogue.json")


def test_the_readme_has_the_committed_catalogue() -> None:
    entries = read_catalogue(MEASURED)
    readme = README.read_text(encoding="utf-8")
    assert readme == with_table(readme, readme_table(entries))
    other = [dataclasses.replace(entries[0], bytes=(entries[0].bytes or 0) + 10_000), *entries[1:]]
    assert readme != with_table(readme, readme_table(other))  # so the line above looks at the figures


def test_the_committed_catalogue_is_of_the_shipped_recipes() -> None:
    recipes, entries = load_recipes(), read_catalogue(MEASURED)
    assert [entry.name for entry in entries] == list(recipes)
    for entry in entries:
        recipe = recipes[entry.name]
        asked = entry_of(recipe, entry.verdict, entry.error, None)
        same = ("task", "variant", "target", "stored", "outputs", "notes")
        assert [getattr(asked, name) for name in same] == [getattr(entry, name) for name in same]
        if isinstance(recipe.compression, Budget) and entry.bytes is not None:
            largest = recipe.compression.max_size or 0
            assert 0.9 * largest < entry.bytes <= largest
