"""coremltools' own tests, their predictions answered by the reference evaluator instead of Core ML.

    $ python -m tests.benchmarks.coremltools_suite [--suite ops …] [--sample N]

Nothing is copied: the tests are those of the installed wheel, a sample of each suite, the same in every
run. With numpy below 2.4, since coremltools' torch frontend does not convert traced shapes with 2.4.
"""

import argparse
import collections
import importlib.util
import os
import re
import signal
import sys
import traceback
import unittest.mock
import zlib
from pathlib import Path
from typing import Any

SUITES = {
    "ops": "coremltools.converters.mil.mil.ops.tests",
    "torch": "coremltools.converters.mil.frontend.torch.test.test_torch_ops",
    "state": "coremltools.converters.mil.frontend.torch.test.test_torch_stateful_model",
    "compression": "coremltools.test.optimize.coreml.test_post_training_quantization",
    "shapes": "coremltools.converters.mil.test_inputs_outputs_shape",
}
VERDICTS = ("agree", "refused", "rounding", "wrong", "error", "no prediction")
SECONDS = 60  # of one test
FP16_TOLERANCE = 2e-3  # of the value, and of the largest value
os.environ.update(PYMIL_TEST_TARGETS="mlprogram", INCLUDE_MIL_FP32_UNIT_TESTS="1", TORCH_FRONTENDS="TORCHSCRIPT")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from mobilevit_coreml._coremltools import ct  # noqa: E402
from mobilevit_coreml.errors import InputError, UnsupportedError  # noqa: E402
from mobilevit_coreml.reference import ReferenceEvaluator  # noqa: E402

failures: list[BaseException] = []  # of predictions in the running test
predictions = 0  # in the running test


class Proxy:
    """Stands in for Core ML's `_MLModelProxy`: loads a package and predicts with the evaluator."""

    def __init__(self, path: str, _compute_units: str, function: str, *_options: Any) -> None:
        self.evaluator: ReferenceEvaluator | None = None
        try:
            self.evaluator = ReferenceEvaluator(path, function_name=function or None)
        except Exception as error:  # told when it predicts
            self.error = error

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return 10

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        global predictions
        predictions += 1
        try:
            evaluator = self._loaded()
            return evaluator.run(data) if state is None else evaluator.run(data, state=state)
        except Exception as error:
            failures.append(error)
            raise

    def batchPredict(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802 - coremltools' name
        return [self.predict(entry) for entry in data]

    def newState(self) -> Any:  # noqa: N802 - coremltools' name
        try:
            return self._loaded().make_state()
        except Exception as error:
            failures.append(error)
            raise

    def _loaded(self) -> Any:
        if self.evaluator is None:
            raise self.error
        return self.evaluator


class Recorder:
    """A pytest plugin: takes the sample, and sorts each test that predicts by its verdict."""

    def __init__(self, sample: int, keyword: str) -> None:
        self.sample, self.keyword = sample, keyword
        self.counts: collections.Counter[str] = collections.Counter()
        self.reasons: collections.Counter[tuple[str, str]] = collections.Counter()
        self.examples: dict[tuple[str, str], str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        found = [item for item in items if self.keyword in item.nodeid and not re.search("neuralnetwork", item.nodeid)]
        found.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        turns: collections.Counter[str] = collections.Counter()  # of each test function
        turn = {}
        for item in found:
            function = item.nodeid.partition("[")[0]
            turn[item] = turns[function]
            turns[function] += 1
        items[:] = sorted(found, key=turn.__getitem__)[: self.sample]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        global predictions
        failures.clear()
        predictions = 0
        np.random.seed(0)
        signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(SECONDS)
        try:
            result = yield
        except pytest.skip.Exception:
            raise
        except BaseException as error:
            signal.alarm(0)
            verdict, reason = _verdict(error)
            self._note(item, "rounding" if verdict == "wrong" and _agrees_in_fp16(item) else verdict, reason)
            raise
        finally:
            signal.alarm(0)
        if predictions:
            self._note(item, "agree", "")
        return result

    def _note(self, item: Any, verdict: str, reason: str) -> None:
        self.counts[verdict] += 1
        if reason:
            self.reasons[verdict, reason] += 1
            self.examples.setdefault((verdict, reason), item.nodeid)


def _agrees_in_fp16(item: Any) -> bool:
    """True if a test of fp16 values, held to the tolerance of fp32, agrees to that of fp16."""
    if not re.search("float16|fp16", item.name):
        return False
    original = np.testing.assert_allclose

    def to_fp16(actual: Any, desired: Any, rtol: float = 0, atol: float = 0, **options: Any) -> None:
        scale = float(np.abs(desired).max(initial=0))
        original(actual, desired, max(rtol, FP16_TOLERANCE), max(atol, FP16_TOLERANCE * scale), **options)

    np.random.seed(0)
    with unittest.mock.patch.object(np.testing, "assert_allclose", to_fp16):
        try:
            item.runtest()
        except Exception:
            return False
    return True


def _too_slow(_signal: int, _frame: Any) -> None:
    raise TimeoutError(f"over {SECONDS} s")


def _verdict(error: BaseException) -> tuple[str, str]:
    """The verdict on a test that failed, and its reason without names of values and numbers."""
    cause = failures[-1] if failures else error
    text = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    text = re.sub(r"package \S+: ", "", re.sub(r"'[^']*'", "'…'", text))
    text = re.sub(r"\d+", "0", text)[:200]
    if failures:
        return ("refused" if isinstance(cause, UnsupportedError | InputError) else "error"), text
    if predictions and isinstance(error, AssertionError):
        frames = traceback.extract_tb(error.__traceback__)
        return "wrong", f"{next(frame.line for frame in reversed(frames) if '/test' in frame.filename)}: {text}"
    return "no prediction", text  # coremltools' own failure: it does not convert


def _replace_core_ml() -> None:
    import coremltools._deps

    if importlib.util.find_spec("peft") is None:  # which one test needs, but all of them import
        sys.modules["peft"] = unittest.mock.MagicMock()
    coremltools._deps._IS_MACOS = True
    for module in (ct.models.utils, ct.models.model):
        module._is_macos = lambda: True
        module._macos_version = lambda: (26, 0)
    ct.models.model._MLModelProxy = Proxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--suite", nargs="+", choices=SUITES, default=list(SUITES), help="suites to run, by default all"
    )
    parser.add_argument("--sample", type=int, default=400, metavar="N", help="tests of each suite (default: 400)")
    parser.add_argument("--keyword", default="", help="only tests with this in their name")
    arguments = parser.parse_args()
    _replace_core_ml()
    print("| suite | " + " | ".join(VERDICTS) + " |\n|---|" + "---|" * len(VERDICTS))
    recorders = {}
    for suite in arguments.suite:
        recorder = recorders[suite] = Recorder(arguments.sample, arguments.keyword)
        without = [f"-pno:{name}" for name in ("cacheprovider", "terminal", "xdist", "warnings")]
        root = str(Path(ct.__path__[0]).parent)
        pytest.main(["-c", os.devnull, "--rootdir", root, *without, "--pyargs", SUITES[suite]], plugins=[recorder])
        counts = [recorder.counts[verdict] for verdict in VERDICTS]
        print(f"| {suite} | " + " | ".join(map(str, counts)) + " |", flush=True)
    for suite, recorder in recorders.items():
        for key, count in recorder.reasons.most_common():
            verdict, reason = key
            print(f"{count:5} {suite} {verdict}: {reason}\n        {recorder.examples[key]}", file=sys.stderr)


if __name__ == "__main__":
    main()
