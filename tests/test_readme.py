"""The README's Python examples, run as they stand; and that CI runs its test command."""

import re
from pathlib import Path

import pytest

from mobilevit_coreml.conversion import convert
from mobilevit_coreml.images import synthetic_images
from mobilevit_coreml.options import ConversionOptions

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = convert("untrained", "xs", verify=False).path
    made.rename("MobileViT_XS_fp16.mlpackage")
    segmenter = convert("untrained", "s", ConversionOptions(task="segmentation", attention="packed"), verify=False).path
    segmenter.rename("DeepLabV3_MobileViT_S_fp16.mlpackage")
    for name in ("cat.jpg", "street.jpg"):
        synthetic_images(300, 400, 1)[0].save(name)
    assert len(blocks("python")) == 4
    for block in blocks("python"):
        exec(block, {})


def test_ci_runs_the_test_command() -> None:
    (command,) = (block.strip() for block in blocks("sh") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
