"""coremltools, imported without its chatter about parts that exist on a Mac only.

Off a Mac its import logs some ten lines about native proxies that did not load, and that torch and
scikit-learn are newer than it was tested with. Warnings of any later moment are not touched.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

from tqdm import tqdm

_logger = logging.getLogger("coremltools")
_logger.addFilter(_drop := lambda record: record.levelno >= logging.ERROR)
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
    _logger.removeFilter(_drop)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep coremltools' five bars a conversion off the terminal, and that it flattens a tuple of outputs, as it should.

    It has no switch for either.
    """
    original = tqdm.__init__
    tqdm.__init__ = partialmethod(original, disable=True)
    _logger.addFilter(_is_news)
    try:
        yield
    finally:
        tqdm.__init__ = original
        _logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
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
