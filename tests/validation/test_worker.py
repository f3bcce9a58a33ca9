"""Requests to a backend, in this process and in one of its own: which may crash, hang and be left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilevit_coreml.validation.worker import BackendError, in_this_process, in_worker
from tests.validation.handlers import open_hanging, open_plain, open_raising

ROOT = Path(__file__).parents[2]
SOON = 60.0  # seconds that no machine is too slow for


def gone(process: int) -> bool:
    """True if a process ends within a while."""
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
    with in_worker(SOON, open_plain, str(tmp_path / "ended")) as ask:
        process = ask("process")
        assert (ask("double", 4), ask("double", "ab")) == (8, "abab")
        assert not (tmp_path / "ended").exists()
    assert process != os.getpid()
    assert gone(process)
    assert (tmp_path / "ended").exists()


def test_an_error_is_an_answer_and_others_follow(tmp_path: Path) -> None:
    with in_worker(float("inf"), open_plain, str(tmp_path / "ended")) as ask:
        with pytest.raises(BackendError, match=r"^ValueError: no in two lines$"):
            ask("raise", "no")
        with pytest.raises(BackendError, match="pickle"):
            ask("unpicklable")
        assert ask("double", 2) == 4


def test_in_this_process(tmp_path: Path) -> None:
    with in_this_process(open_plain, str(tmp_path / "ended")) as ask:
        assert ask("process") == os.getpid()
        assert ask("double", 4) == 8
        with pytest.raises(BackendError, match=r"^ValueError: no in two lines$"):
            ask("raise", "no")
    with pytest.raises(BackendError, match="RuntimeError: no such model"), in_this_process(open_raising, ""):
        pass


@pytest.mark.parametrize(("request_", "message"), [("abort", "crashed with SIGABRT"), ("exit", "ended with .* code 7")])
def test_a_process_that_ends_is_an_error(tmp_path: Path, request_: str, message: str) -> None:
    with in_worker(SOON, open_plain, str(tmp_path / "ended")) as ask:
        with pytest.raises(BackendError, match=message):
            ask(request_)
        with pytest.raises(BackendError, match=message):
            ask("double", 1)


def test_silence_is_an_error_and_its_process_ends(tmp_path: Path) -> None:
    with in_worker(1, open_plain, str(tmp_path / "ended")) as ask:
        process = ask("process")
        with pytest.raises(BackendError, match="no answer within 1 seconds"):
            ask("hang", 600)
    assert gone(process)


def test_a_package_that_does_not_open_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="RuntimeError: no such model"), in_worker(SOON, open_raising, ""):
        pass
    log = tmp_path / "process"
    with pytest.raises(BackendError, match="no answer within 1 seconds"), in_worker(1, open_hanging, str(log)):
        pass
    assert gone(int(log.read_text()))


def script(tmp_path: Path, timeout: float) -> subprocess.Popen[str]:
    """A script without a `__main__` guard, whose worker writes its id into `worker` and hangs."""
    path = tmp_path / "script.py"
    path.write_text(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "from mobilevit_coreml.validation.worker import in_worker\n"
        "from tests.validation.handlers import open_hanging, open_plain\n"
        f"with in_worker(60, open_plain, {str(tmp_path / 'ended')!r}) as ask: print(ask('double', 21), flush=True)\n"
        f"with in_worker({timeout}, open_hanging, {str(tmp_path / 'worker')!r}): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    )


def worker_of(parent: "subprocess.Popen[str]", log: Path) -> int:
    while not (log.is_file() and log.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    return int(log.read_text())


def test_a_scripts_worker_does_not_run_the_script_again(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal, but is the script's to handle."""
    with script(tmp_path, SOON) as parent:
        worker = worker_of(parent, tmp_path / "worker")
        os.killpg(parent.pid, signal.SIGINT)
        out, err = parent.communicate(timeout=SOON)
    assert out == "42\n"
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")
    assert gone(worker)


@pytest.mark.slow
def test_a_hanging_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    with script(tmp_path, 2) as parent:
        worker = worker_of(parent, tmp_path / "worker")
        parent.kill()
        parent.communicate()
    assert gone(worker)
