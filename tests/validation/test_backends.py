"""What runs packages, in processes of their own: these may crash, hang and be left alone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilevit_coreml.cli.validate import main
from mobilevit_coreml.metrics import FAIL, PASS
from mobilevit_coreml.report.text import summary
from mobilevit_coreml.validation import run as validation
from mobilevit_coreml.validation.backends import BackendError, Worker
from mobilevit_coreml.validation.core_ml import UNITS
from mobilevit_coreml.validation.run import Validation, validate
from tests.validation.handlers import open_hanging, open_plain, open_raising
from tests.validation.native import Mac

ROOT = Path(__file__).parents[2]
SOON = 60.0  # seconds that no machine is too slow for


@contextlib.contextmanager
def plain(tmp_path: Path, timeout: float = SOON) -> Iterator[Worker]:
    with Worker(timeout, open_plain, str(tmp_path / "ended")) as worker:
        yield worker


def gone(process: int) -> bool:
    """Whether a process has ended, within a while."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").is_file() and " Z " in Path(f"/proc/{process}/stat").read_text():
            return True
        time.sleep(0.05)
    return False


def test_a_worker_answers_and_ends_in_good_order(tmp_path: Path) -> None:
    with plain(tmp_path) as worker:
        process = worker.ask("process")
        worker.send("double", 4)
        worker.send("double", "ab")
        assert (worker.receive(), worker.receive()) == (8, "abab")
        assert not (tmp_path / "ended").exists()
    assert process != os.getpid()
    assert gone(process)
    assert (tmp_path / "ended").exists()


def test_an_error_is_an_answer_and_others_follow(tmp_path: Path) -> None:
    with plain(tmp_path) as worker:
        with pytest.raises(BackendError, match=r"^ValueError: no in two lines$"):
            worker.ask("raise", "no")
        with pytest.raises(BackendError, match="pickle"):
            worker.ask("unpicklable")
        assert worker.ask("double", 2) == 4


@pytest.mark.parametrize(
    ("request_", "message"), [("abort", "crashed with SIGABRT"), ("exit", "ended with exit code 7")]
)
def test_a_process_that_ends_is_an_error(tmp_path: Path, request_: str, message: str) -> None:
    with plain(tmp_path) as worker:
        with pytest.raises(BackendError, match=message):
            worker.ask(request_)
        with pytest.raises(BackendError, match=message):
            worker.ask("double", 1)


def test_silence_is_an_error_and_its_process_ends(tmp_path: Path) -> None:
    with plain(tmp_path, 2) as worker:
        process = worker.ask("process")
        with pytest.raises(BackendError, match="no answer within 2 seconds"):
            worker.ask("hang", 600)
    assert gone(process)


def test_no_timeout_is_too_long(tmp_path: Path) -> None:
    with plain(tmp_path, float("inf")) as worker:
        assert worker.ask("double", 1) == 2


def test_a_package_that_does_not_open_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="RuntimeError: no such model"), Worker(SOON, open_raising, ""):
        pass
    log = tmp_path / "process"
    with pytest.raises(BackendError, match="no answer within 2 seconds"), Worker(2, open_hanging, str(log)):
        pass
    assert gone(int(log.read_text()))


def test_who_hangs_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "process"
    script = "from tests.validation.handlers import *; from mobilevit_coreml.validation.backends import Worker\n"
    script += f"with Worker(2, open_hanging, {str(log)!r}): pass"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as parent:
        while not (log.is_file() and log.read_text()):
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
    assert gone(int(log.read_text()))


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_an_interruption_is_one_line_and_leaves_no_process(classifier: Path, seconds: float) -> None:
    """Ctrl-C reaches all processes of a terminal: a worker that starts, and one that loads or works."""
    command = [sys.executable, "-m", "validate", str(classifier), "--backend", "reference"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=ROOT) as process:
        while not (workers := group(process.pid, "spawn_main")):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out, err) == (130, "", "interrupted: nothing half-made is left\n")
    assert all(gone(worker) for worker in workers)


def group(leader: int, argument: str) -> list[int]:
    """The processes of a group with a word among their arguments."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,pgid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if row[1] == str(leader) and argument in row[-1]]


def core_ml(classifier: Path, monkeypatch: pytest.MonkeyPatch, mac: Mac, **options: Any) -> Validation:
    monkeypatch.setattr(validation, "open_core_ml", mac)
    monkeypatch.setattr("mobilevit_coreml.validation.backends.core_ml_is_here", lambda: True)
    return validate(classifier, backend="coreml", **options)


def test_all_units_pass(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = core_ml(classifier, monkeypatch, Mac())
    assert result.verdict == PASS
    assert [str(run.backend) for run in result.runs] == [f"coreml {unit}" for unit in UNITS]
    assert [run.latency["median_ms"] for run in result.runs] == [2.0] * len(UNITS)
    placed = [{one.device for one in run.plan} - {None} for run in result.runs]
    assert placed == [{"cpu"}, {"gpu"}, {"neuralEngine", "cpu"}, {"neuralEngine", "cpu"}]


def test_a_crash_on_one_unit_hides_no_other(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = core_ml(classifier, monkeypatch, Mac(aborts=("cpuAndGPU",)), compute_units=["cpuAndGPU", "all"])
    crashed, other = result.runs
    assert (result.verdict, crashed.verdict, crashed.reason) == (FAIL, FAIL, "crashed with SIGABRT")
    assert (crashed.fidelity, crashed.latency, other.verdict) == (None, {}, PASS)
    assert "FAIL, crashed with SIGABRT" in summary(result)


def test_a_unit_that_hangs_is_given_up(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mac = Mac(hangs=("cpuAndNeuralEngine",))
    (run,) = core_ml(classifier, monkeypatch, mac, compute_units=["cpuAndNeuralEngine"], timeout=4).runs
    assert (run.verdict, run.reason) == (FAIL, "no answer within 4 seconds")


def test_the_command_off_a_mac(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mobilevit_coreml.validation.backends.core_ml_is_here", lambda: False)
    assert main([str(classifier), "--backend", "coreml"]) == 3
    out = capsys.readouterr().out
    assert f"{classifier}: NOT_RUN" in out.replace("\n", "")
    assert "NOT_RUN, Core ML is on a Mac only" in out
