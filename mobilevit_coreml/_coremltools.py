"""Import of coremltools without its log messages about parts that exist only on macOS.

On other systems the import logs about ten lines, on native proxies that did not load and on newer
versions of torch and scikit-learn. Later warnings are not affected.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

from tqdm import tqdm

_logger = logging.getLogger("coremltools")
_logger.addFilter(_errors_only := lambda record: record.levelno >= logging.ERROR)
try:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass
    from coremltools.converters.mil.mil.scope import ScopeSource
    from coremltools.libmilstoragepython import _BlobStorageReader as BlobStorageReader
finally:
    _logger.removeFilter(_errors_only)


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress coremltools' progress bars and its warning about a tuple of outputs, for which it has no option."""
    original = tqdm.__init__
    tqdm.__init__ = partialmethod(original, disable=True)
    _logger.addFilter(_is_relevant)
    try:
        yield
    finally:
        tqdm.__init__ = original
        _logger.removeFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Tuple detected at graph output")


__all__ = [
    "AbstractGraphPass",
    "BlobStorageReader",
    "ScopeSource",
    "ct",
    "mb",
    "quietly",
    "register_pass",
    "register_torch_op",
    "types",
]
