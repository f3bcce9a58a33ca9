"""Processes that crash, are interrupted, or lose their parent; their functions are light: no torch is loaded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilevit_coreml.progress import Progress
from mobilevit_coreml.release.workers import ONE_THREAD, call_in_processes

ROOT = Path(__file__).parent.parent.parent


def respond(task: str, progress: Progress) -> str:
    """Answer, crash, or raise, as the task says."""
    progress("stage")
    if task == "crash":
        os.abort()
    if task == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "interrupted":
        os.kill(os.getpid(), signal.SIGTERM)
    return f"{task} {os.environ['OMP_NUM_THREADS']}"


def test_a_crash_is_one_task_s_alone() -> None:
    tasks = ["a", "crash", "killed", "interrupted", "b"]
    results = dict(call_in_processes(respond, tasks, jobs=2))
    assert results == {"a": "a 1", "b": "b 1", "crash": None, "killed": None, "interrupted": None}


def test_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ONE_THREAD:
        monkeypatch.setenv(name, "3")
    assert list(call_in_processes(respond, ["a"], jobs=1)) == [("a", "a 1")]
    assert all(os.environ[name] == "3" for name in ONE_THREAD)


def work(place: str, progress: Progress) -> str:
    """Work until interrupted, and then clear away; of the places called "stubborn" only when `progress` says so."""
    directory = Path(place)
    (directory / "begun").touch()
    try:
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                if directory.name != "stubborn":
                    raise
                progress("stage")
    finally:
        (directory / "cleared").touch()


def wait_for(path: Path) -> None:
    for _ in range(300):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited half a minute for {path}")


@pytest.mark.parametrize("name", ["polite", "stubborn"])
def test_the_processes_end_with_the_iteration(tmp_path: Path, name: str) -> None:
    (directory := tmp_path / name).mkdir()
    (done := tmp_path / "done").mkdir()
    (waiting := tmp_path / "waiting").mkdir()
    results = call_in_processes(respond_or_work, [str(done), str(directory), str(waiting)], jobs=1)
    assert next(results)[0] == str(done)
    wait_for(directory / "begun")
    results.close()
    assert (directory / "cleared").exists()
    assert not (waiting / "begun").exists()


def respond_or_work(place: str, progress: Progress) -> str:
    """Answer at once of a directory called "done"."""
    return "" if Path(place).name == "done" else work(place, progress)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores
from mobilevit_coreml.release.workers import call_in_processes
from tests.release.test_workers import work

if __name__ == "__main__":
    list(call_in_processes(work, sys.argv[1:], jobs=2))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        directory.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, directories)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for directory in directories:
        wait_for(directory / "begun")
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: to all
    else:
        process.kill()
    for directory in directories:
        wait_for(directory / "cleared")
    _, err = process.communicate(timeout=30)
    assert err.count("Traceback") == (1 if how == signal.SIGINT else 0)  # of this process, not of those it started
