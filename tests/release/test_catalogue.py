"""The catalogue for people, and the README's table of packages, which is what the committed catalogue makes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.errors import InputError
from mobilevit_coreml.release.catalogue import (
    BEGIN,
    END,
    MEASURED,
    entry_of,
    figures_text,
    page,
    read_catalogue,
    readme_table,
    rewrite,
    with_table,
    write_catalogue,
)
from mobilevit_coreml.release.recipe import load_recipes

ROOT = Path(__file__).parent.parent.parent

REPORT: dict[str, Any] = {
    "package": "MobileViT_XXS_fp16.mlpackage",
    "bytes": 2_680_000,
    "operations": 331,
    "untrained": False,
    "weights": {"name": "apple/mobilevit-xx-small", "naming": "", "revision": "r", "sha256": "abc", "seed": None},
    "sha256": "def",
    "sizes": {"main": [256, 256]},
    "fidelity": {"main": {"figures": {"snr": 53.19, "top1": 1.0}}},
    "quality": {},
}
XXS = load_recipes()["xxs_fp16"]
TRAINED = entry_of(XXS, "PASS", "", REPORT)
UNTRAINED = entry_of(
    XXS, "PASS", "", {**REPORT, "untrained": True, "weights": {**REPORT["weights"], "sha256": None, "seed": 0}}
)


def test_an_entry() -> None:
    assert TRAINED["outputs"] == ["classLabel_probs"]
    assert TRAINED["fidelity"] == {"main": {"snr": 53.19, "top1": 1.0}}
    assert TRAINED["weights"]["sha256"] == "abc"
    assert TRAINED["stored"] == "fp16"


def test_a_page_says_what_is_untrained_and_what_went_wrong(tmp_path: Path) -> None:
    text = page([TRAINED])
    assert "| 2.68 MB | 331 | 53.1 dB, top-1 100.0% | apple/mobilevit-xx-small, `abc` | `def` |" in text
    assert "UNTRAINED" not in text
    assert "wrong" not in text
    failed = entry_of(XXS, "FAIL", "a | b", None)
    text = page([UNTRAINED, failed])
    assert "**UNTRAINED**, seed 0" in text
    assert text.endswith("## What went wrong\n\n- xxs_fp16: FAIL, a \\| b\n")
    write_catalogue(tmp_path, [TRAINED, failed])
    assert read_catalogue(tmp_path / "catalogue.json") == [TRAINED, failed]


def test_the_readme_claims_nothing_of_weights_that_were_not_there() -> None:
    assert "| 2.68 MB | 331 | iOS16 | 53.1 dB, top-1 100.0% |" in readme_table([TRAINED])
    text = readme_table([UNTRAINED])
    assert "| 2.68 MB | 331 | iOS16 | unmeasured |" in text
    assert "dB" not in text
    assert "all of these packages" in text
    assert "weights of the real shapes: xxs_fp16." in readme_table([TRAINED, UNTRAINED])
    assert "| unmeasured | unmeasured | iOS16 | unmeasured |" in readme_table([entry_of(XXS, "NOT_RUN", "no", None)])


def test_figures_are_rounded_down() -> None:
    assert figures_text({"a": {"snr": 60.0}, "b": {"snr": 29.99, "pixels": 0.5}}) == "29.9 dB, pixels 50.0%"
    assert figures_text({"a": {"snr": "inf", "top1": 1.0}}) == "top-1 100.0%"
    assert figures_text({}) == ""


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
    with pytest.raises(InputError, match="expected what --all writes, got .*; make it anew"):
        rewrite(tmp_path / "README.md", tmp_path / "catalogue.json")


def test_the_readme_has_the_committed_catalogue() -> None:
    entries = read_catalogue(MEASURED)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme, readme_table(entries))
    other = copy.deepcopy(entries)
    other[0]["bytes"] += 10_000
    assert readme != with_table(readme, readme_table(other))  # so the line above looks at the figures


def test_the_committed_catalogue_is_of_the_shipped_recipes() -> None:
    recipes, entries = load_recipes(), read_catalogue(MEASURED)
    assert [entry["name"] for entry in entries] == list(recipes)
    for entry in entries:
        asked = entry_of(recipes[entry["name"]], entry["verdict"], entry["error"], None)
        assert asked == {key: entry[key] for key in asked}
        budget = recipes[entry["name"]].budget
        if budget is not None and "bytes" in entry:
            assert 0.9 * (budget.max_size or 0) < entry["bytes"] <= (budget.max_size or 0)
