"""Packages and files that are built once in a test run, however many workers share it."""

import fcntl
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mobilevit_coreml.conversion import Conversion, convert
from mobilevit_coreml.model import backbone
from mobilevit_coreml.options import ConversionOptions

T = TypeVar("T")


def once_per_run(factory: pytest.TempPathFactory, key: str, build: Callable[[Path], T]) -> T:
    """The value of `build(directory)`, called by the first worker that asks and unpickled by the others.

    `key` is the name of the directory. Everybody shares what is in it: tests read it and never write there.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    directory = base / "once" / key
    directory.parent.mkdir(exist_ok=True)
    value = directory.with_name(f"{key}.pickle")
    with directory.with_name(f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes
        if not value.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            value.write_bytes(pickle.dumps(build(directory)))
    return pickle.loads(value.read_bytes())


def convert_once(
    factory: pytest.TempPathFactory,
    weights: str,
    variant: str | None = None,
    *,
    verify: bool = False,
    images: Path | None = None,
    **options: Any,
) -> Conversion:
    """`convert` with these options and a directory for output, once per run; not verified by default."""
    depth = (backbone.DEPTHS, backbone.BLOCKS)  # the fixture `shallow` changes them
    key = repr((weights, variant, verify, images, ConversionOptions(**options), depth))
    return once_per_run(
        factory,
        hashlib.sha256(key.encode()).hexdigest()[:16],
        lambda directory: convert(
            weights, variant, ConversionOptions(**options), output=directory, verify=verify, images=images
        ),
    )
