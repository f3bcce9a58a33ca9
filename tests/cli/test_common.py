"""What the commands have in common, by commands that only raise or print."""

import contextlib
import subprocess
import sys

import pytest

from mobilevit_coreml.cli.common import Stages, run
from mobilevit_coreml.errors import ConfigError


def raising(error: BaseException) -> int:
    def command(stages: Stages) -> int:
        with stages("work"):
            raise error

    return run(command, stages=1)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("size: expected 1,\ngot 2; take 1"), 2, r"error: size: expected 1,\ngot 2; take 1"),
        (
            OSError(36, "File name too long", "xxx"),
            2,
            "error: the system refused: File name too long (xxx); check the path",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "error: the system refused: No space left on device; check the path",
        ),
        (KeyboardInterrupt(), 130, "interrupted: nothing half-made is left"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(error) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


def test_an_interruption_that_a_library_swallowed_counts_at_the_end_of_the_stage() -> None:
    def command(stages: Stages) -> int:
        with stages("work"), contextlib.suppress(BaseException):  # as coremltools' imports do
            stages.interrupt(15, None)
        return 0

    assert run(command, stages=1) == 128 + 15


PRINT = """
import sys
from mobilevit_coreml.cli.common import run
def command(stages):
    print("Äffchen …" * 20000)
    return 0
sys.exit(run(command, stages=1))
"""


def test_a_reader_that_leaves_early_is_no_error() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {PRINT!r}], "
         "stdout=subprocess.PIPE); p.stdout.read(10); p.stdout.close(); sys.exit(p.wait())"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_terminal_without_unicode_is_no_error() -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    finished = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, env=environment, check=False)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.startswith(b"\\xc4ffchen \\u2026")


def test_a_long_stage_has_a_bar_of_its_own_that_a_pipe_does_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    for stages in (Stages(), Stages(2)):
        with stages("long"), stages.steps("part", 3) as advance:
            for _ in range(3):
                advance()
        stages.close()
    assert capsys.readouterr().err == ""
    assert list(stages.seconds) == ["long"]
