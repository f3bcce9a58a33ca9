"""The library's names, and its commands under one."""

import contextlib
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mobilevit_coreml as mc
from mobilevit_coreml.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", mc.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    thing = getattr(mc, name)
    assert thing.__name__ == ("load_checkpoint" if name == "load" else name)
    assert len(inspect.getdoc(thing) or "") > 30
    if inspect.isfunction(thing):
        hints = inspect.signature(thing)
        assert all(one.annotation is not inspect.Parameter.empty for one in hints.parameters.values())
        assert hints.return_annotation is not inspect.Signature.empty


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'mobilevit_coreml' has no attribute 'nothing'"):
        mc.nothing  # noqa: B018


def test_names_are_listed() -> None:
    assert set(mc.__all__) <= set(dir(mc))


@pytest.mark.parametrize("command", ["convert", "predict", "validate"])
def test_a_command_cannot_take_the_place_of_the_function(command: str) -> None:
    with pytest.raises(ImportError, match=f"run `python -m mobilevit_coreml.{command}`"):
        importlib.import_module(f"mobilevit_coreml.{command}")
    assert inspect.isfunction(getattr(mc, command))


def test_no_public_name_is_a_module() -> None:
    """Whatever is imported: `import a.b` makes b an attribute of a."""
    for module in pkgutil.walk_packages(mc.__path__, "mobilevit_coreml.", onerror=lambda _: None):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
    assert not [name for name in mc.__all__ if inspect.ismodule(getattr(mc, name))]


def test_importing_the_library_is_quick_and_quiet() -> None:
    """Torch and coremltools come when something needs them."""
    code = "import sys, mobilevit_coreml; print({'torch', 'coremltools', 'numpy'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("set()\n", "")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{mc.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mobilevit-coreml {command} ")


def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["konvert"]) == 2
    assert capsys.readouterr().err.startswith("error: expected one of convert, predict, validate, conversions, got")


def test_commands_do_their_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "small.mlpackage"
    arguments = ["--variant", "xxs", "--weights", "untrained", "--image-size", "64", "--no-verify"]
    assert main(["convert", *arguments, "--output", str(package)]) == 0
    assert "small_untrained" in capsys.readouterr().out
