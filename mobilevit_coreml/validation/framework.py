"""The framework's own answer: a checkpoint as its library reads it, against this package's reading.

Every other check compares a package with this package's reading of the checkpoint, and is blind to what that gets
wrong: the meaning of outputs, pixels, class names, activations. Here both sides get the same image files.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mobilevit_coreml.checkpoints.overrides import PIXELS
from mobilevit_coreml.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task
from mobilevit_coreml.errors import InputError, os_error_text
from mobilevit_coreml.images import read_image, synthetic_images
from mobilevit_coreml.labels import unique_labels
from mobilevit_coreml.mil.export import CLASSIFIER_OUTPUTS
from mobilevit_coreml.model import Model
from mobilevit_coreml.package.interface import LABELS, SCORES, VALUES
from mobilevit_coreml.package.metadata import PackageRecord
from mobilevit_coreml.preprocessing import Preprocessing
from mobilevit_coreml.validation.checks import Check
from mobilevit_coreml.validation.framework_worker import FrameworkAnswer, open_framework
from mobilevit_coreml.validation.worker import BackendError, in_worker

FRAMEWORK = "framework"
LIBRARIES = {"Hugging Face": "transformers", "timm": "timm"}
MAX_IMAGES = 4
TIMEOUT = 300.0  # seconds
# Both sides compute in fp32; libraries resize 8-bit images by code of their own, one gray level apart at most.
MAX_DIFFERENCE = 0.01  # of a probability, or of a value in shares of the largest of all images
MIN_PIXEL_AGREEMENT = 0.98  # of a mask's pixels
MIN_COSINE = 0.999  # of pooled features


@dataclasses.dataclass(frozen=True)
class Reading:
    """A checkpoint as it was read: model, preprocessing and class names of a function, record, and weights file."""

    model: Model
    preprocessing: Preprocessing
    classes: Sequence[str]
    record: PackageRecord
    weights: Path | None

    @property
    def task(self) -> Task:
        """The task of the model."""
        return self.record.task

    @property
    def naming(self) -> str:
        """The code base of the weights."""
        return self.record.weights.naming

    @property
    def given(self) -> Mapping[str, Any]:
        """Options that stood in place of what the files say."""
        return self.record.given


def check_framework(
    reading: Reading, images: Sequence[Path] = (), expected: Path | None = None, timeout: float = TIMEOUT
) -> Check:
    """Compare a reading with its library's answers, or with `expected` ones, on a few image files.

    `images` are files, to which two synthetic ones are added. `expected` is a .npz file of published outputs:
    `images`, the names of files, and one of probabilities, values (N, K), masks (N, H, W) or pooled (N, C). NOT_RUN,
    which is `passed` None, where the library is not installed or does not load the checkpoint itself.

    Raises InputError for an `expected` that cannot be read.
    """
    if expected is not None:
        return _compare(reading, expected.name, _published(expected, images))
    library = LIBRARIES.get(reading.naming)
    reason = _reason_not_to_run(reading, library)
    if reason or library is None:
        return Check(FRAMEWORK, None, reason)
    arguments = (reading.naming, str(reading.weights), str(reading.task), reading.record.variant)
    try:
        with (
            _image_files(images, reading.preprocessing) as files,
            in_worker(
                timeout, open_framework, *arguments, bool(reading.given.get("ema")), reading.model.config.num_labels
            ) as ask,
        ):
            as_read = _as_read(reading)
            answers = []
            for file in files:
                answers.append((file, ask("run", _pixels(reading, file) if as_read else str(file))))
            return _compare(reading, library, answers, " (pixels as read here)" if as_read else "")
    except BackendError as error:
        return Check(FRAMEWORK, None, f"{library} gave no answer: {error}")


def _pixels(reading: Reading, file: Path) -> npt.NDArray[np.float32]:
    """The network's input for an image file, as it was read."""
    return reading.preprocessing.pixels(reading.preprocessing.prepare(read_image(file)))


def _reason_not_to_run(reading: Reading, library: str | None) -> str:
    if reading.naming == "mobilevit_coreml" or reading.weights is None:
        return "the weights are of no other framework"
    if library is None:
        return f"{reading.naming} has no package; give its published outputs with --expected FILE.npz"
    if not _is_installed(library):
        return f"{library} is not installed"
    replaced = [name for name in reading.given if name not in (*PIXELS, "ema", "labels")]
    if replaced:
        return f"options stand in place of what the files say: {', '.join(replaced)}"
    return ""


def _is_installed(library: str) -> bool:
    from importlib.util import find_spec

    return find_spec(library) is not None


def _as_read(reading: Reading) -> bool:
    """True where the library has nothing to say of pixels: the user, or an assumption, says it."""
    files = ("preprocessor_config.json", "processor_config.json")
    named = reading.weights is not None and any(reading.weights.with_name(name).is_file() for name in files)
    bare = reading.naming == "timm" and any("timm's for mobilevit" in text for text in reading.record.assumed)
    given = any(name in reading.given for name in PIXELS)
    return given or bare or (reading.naming == "Hugging Face" and not named)


@contextlib.contextmanager
def _image_files(images: Sequence[Path], preprocessing: Preprocessing) -> Iterator[list[Path]]:
    """Some of the images, and files of two synthetic ones that are larger than the input, one upright, one lying.

    Square or gray photographs alone would agree whatever is done to edges and channels.
    """
    height, width = preprocessing.input_size
    sizes = ((height * 5 // 4 + 3, width * 3 // 2 + 2), (height * 7 // 4 + 1, width * 4 // 3 + 5))
    with tempfile.TemporaryDirectory(prefix="mobilevit-framework-") as directory:
        files = list(images[:MAX_IMAGES])
        for index, size in enumerate(sizes):
            files.append(Path(directory, f"{index}.png"))
            synthetic_images(*size, count=index + 1)[index].save(files[-1])
        yield files


def _compare(
    reading: Reading, library: str, answers: Sequence[tuple[Path, FrameworkAnswer]], remark: str = ""
) -> Check:
    """The worst of all images, by what a user sees."""
    worst: tuple[float, str] = (-1.0, "")
    largest = max(float(np.abs(answer.output).max(initial=0)) for _, answer in answers)
    for file, answer in answers:
        if answer.pixels != (0, 0) and answer.pixels != reading.preprocessing.crop:
            height, width = reading.preprocessing.crop
            got = f"{answer.pixels[1]}x{answer.pixels[0]}"
            return Check(FRAMEWORK, None, f"{library} takes {got} pixels, the package {width}x{height}")
        kind, mine = _own_answer(reading, file, answer)
        if kind != answer.kind:
            return Check(FRAMEWORK, False, f"{library} answers with {answer.kind}, expected {kind}")
        wrong = _other_names(reading, answer)
        if wrong:
            return Check(FRAMEWORK, False, f"{library} {wrong}")
        share, text = _distance(kind, mine, answer.output, largest, library)
        if not share <= worst[0]:  # or not a number, which is the worst
            worst = share, text
        if math.isnan(share):
            break
    share, text = worst
    return Check(FRAMEWORK, share <= 1, f"{text} on {len(answers)} images{remark}")


@torch.inference_mode()
def _own_answer(reading: Reading, file: Path, answer: FrameworkAnswer) -> tuple[str, npt.NDArray[np.float32]]:
    """Kind and output of the model as it was read, for an image file."""
    result: Any = reading.model(torch.from_numpy(_pixels(reading, file)))
    if reading.task == Task.FEATURES:
        return "pooled", result.pooled[0].numpy()
    if reading.task == Task.SEGMENTATION:
        return "masks" if answer.kind == "masks" else "logits", result.logits[0].numpy()
    meaning = {SINGLE_LABEL: LABELS, MULTI_LABEL: SCORES, REGRESSION: VALUES}[reading.model.config.problem_type]
    kind = "values" if meaning == VALUES else "probabilities"
    return kind, CLASSIFIER_OUTPUTS[meaning](result.logits)[0].numpy()


def _other_names(reading: Reading, answer: FrameworkAnswer) -> str:
    """What is wrong with the class names; "" where they agree, or the user gave others."""
    if not answer.names or "labels" in reading.given:
        return ""
    names, _ = unique_labels([name.strip() for name in answer.names])
    different = [index for index, name in enumerate(reading.classes) if index >= len(names) or names[index] != name]
    if not different:
        return ""
    index = different[0]
    theirs = names[index] if index < len(names) else "nothing"
    return f"calls class {index} {theirs!r:.50}, expected {reading.classes[index]!r:.50}"


def _distance(
    kind: str, mine: npt.NDArray[Any], theirs: npt.NDArray[Any], largest: float, library: str
) -> tuple[float, str]:
    """Distance of two answers, in shares of what is allowed, and in words; `largest` is of all images."""
    if theirs.ndim != 2 if kind == "masks" else mine.shape != theirs.shape:
        got, expected = ("x".join(map(str, output.shape)) for output in (theirs, mine))
        return math.inf, f"{library} has outputs of {got}, expected {expected}"
    if kind == "pooled":
        norms = float(np.linalg.norm(mine) * np.linalg.norm(theirs))
        cosine = float(mine.astype(np.float64) @ theirs) / norms if norms else 0.0
        return (1 - cosine) / (1 - MIN_COSINE), f"{library} agrees in features to a cosine of {cosine:.5f}"
    if kind in ("logits", "masks"):
        maps = [_class_map(output, np.shape(theirs)[-2:] if kind == "masks" else None) for output in (mine, theirs)]
        agreement = float((maps[0] == maps[1]).mean())
        return (1 - agreement) / (1 - MIN_PIXEL_AGREEMENT), f"{library} agrees in {agreement:.2%} of the pixels"
    difference = float(np.abs(mine - theirs).max())
    allowed = MAX_DIFFERENCE * (largest if kind == "values" else 1.0)
    one = "value" if kind == "values" else "probability"
    share = difference / allowed if allowed else difference and math.inf
    return share, f"{library} differs by at most {difference:.2g} in a {one} (allowed {allowed:.2g})"


def _class_map(output: npt.NDArray[Any], size: tuple[int, ...] | None) -> npt.NDArray[Any]:
    if output.ndim == 2:
        return output
    if size is not None:
        output = F.interpolate(torch.from_numpy(output)[None], size=size, mode="bilinear")[0].numpy()
    return output.argmax(0)


def _published(path: Path, images: Sequence[Path]) -> list[tuple[Path, FrameworkAnswer]]:
    """The answers in a .npz file for some of the images."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: np.atleast_1d(saved[name]) for name in saved.files}
    except Exception as error:  # damaged archives raise all kinds of exceptions
        raise InputError(f"expected {path}: expected a .npz file, got {os_error_text(error)}; check the path") from None
    kinds = [kind for kind in ("probabilities", "values", "masks", "pooled") if kind in arrays]
    names = [str(name) for name in arrays.get("images", [])]
    if len(kinds) != 1 or not names or len(arrays[kinds[0]]) != len(names) or arrays[kinds[0]].dtype.kind not in "fiu":
        raise InputError(
            f"expected {path}: expected images, the names of files, and one of probabilities, values, masks and pooled "
            f"for each, got {', '.join(arrays) or 'nothing'}; save these arrays"
        )
    by_name = {file.name: file for file in images}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(f"expected {path}: expected {missing[0]} among the images, got none; give --images")
    kind = kinds[0]
    return [
        (by_name[name], FrameworkAnswer(kind, np.asarray(output), (), (0, 0)))
        for name, output in zip(names, arrays[kind], strict=True)
    ]
