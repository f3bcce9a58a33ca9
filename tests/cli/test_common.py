"""Parts of all commands, by commands that only raise or print."""

import contextlib
import io
import subprocess
import sys

import pytest

from mobilevit_coreml.cli.common import ProgressBar, run
from mobilevit_coreml.errors import ConfigError


def raising(error: BaseException) -> int:
    def command(progress: ProgressBar) -> int:
        progress("work")
        raise error

    return run(command)


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


@pytest.mark.parametrize("next_stage", [True, False])
def test_an_interruption_that_a_library_swallowed_counts_at_the_end_of_the_stage(next_stage: bool) -> None:
    reached = []

    def command(progress: ProgressBar) -> int:
        progress("work")
        with contextlib.suppress(BaseException):  # as coremltools' imports do
            progress.interrupt(15, None)
        reached.append("end of the stage")
        if next_stage:
            progress("publish")
            reached.append("next stage")
        return 0

    assert run(command) == 128 + 15
    assert reached == ["end of the stage"]


PRINT = """
import sys
from mobilevit_coreml.cli.common import run
def command(progress):
    print("Äffchen …" * 20000)
    return 0
sys.exit(run(command))
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


def test_a_pipe_sees_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressBar()
    for stage in ("weights", "verify"):
        progress(stage)
        for done in range(4):
            progress(stage, done, 3)
    progress.close()
    assert capsys.readouterr().err == ""
    assert list(progress.seconds) == ["weights", "verify"]


def test_a_terminal_sees_how_far_a_stage_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    progress = ProgressBar()
    progress("calibrate", 0, 24)
    progress("calibrate", 24, 24)
    progress.close()
    assert "calibrate" in terminal.getvalue()
    assert "0/24" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # nothing of it is left
