"""Packages of the reports' examples, built once in a test run."""

import pytest

from tests.validation import examples


@pytest.fixture(scope="session", autouse=True)
def shared_packages(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let `examples` share packages with the other workers."""
    examples.factory = tmp_path_factory
