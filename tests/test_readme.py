"""The READMEs' Python examples, run as scripts; the commands they name; and that CI runs the test command."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobilevit_coreml.cli.build import parser as build_parser
from mobilevit_coreml.cli.convert import parser as convert_parser
from mobilevit_coreml.cli.predict import parser as predict_parser
from mobilevit_coreml.cli.validate import parser as validate_parser
from mobilevit_coreml.images import synthetic_images
from tests.cache import convert_once

ROOT = Path(__file__).parent.parent
READMES = [ROOT / name for name in ("README.md", "validate/README.md", "conversions/README.md")]
README = READMES[0].read_text(encoding="utf-8")
PARSERS = {
    "mobilevit_coreml.convert": convert_parser,
    "mobilevit_coreml.predict": predict_parser,
    "validate": validate_parser,
    "conversions": build_parser,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(2))
def test_python_examples_run_as_scripts(number: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As files: a process that is started runs a script without a `__main__` guard again."""
    package = convert_once(tmp_path_factory, "untrained", "xxs", attention="packed").path
    shutil.copytree(package, tmp_path / "MobileViT_XS_fp16.mlpackage")
    synthetic_images(300, 400, 1)[0].save(tmp_path / "cat.jpg")
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[number], encoding="utf-8")
    finished = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    if "mc.validate" in script.read_text(encoding="utf-8"):
        assert finished.stdout.endswith("\nPASS\n")


def test_all_examples_are_run() -> None:
    assert len(blocks("python")) == 2


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    typed = re.findall(
        r"python -m (mobilevit_coreml\.convert|mobilevit_coreml\.predict|validate|conversions)( [^\n`]*)", text
    )
    assert typed
    for module, arguments in typed:
        PARSERS[module]().parse_args(shlex.split(arguments))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (readme.parent / link).exists(), link


def test_the_readme_is_a_door() -> None:
    assert len(README.splitlines()) <= 185


def test_ci_runs_the_test_command() -> None:
    (command,) = (block.strip() for block in blocks("sh") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
