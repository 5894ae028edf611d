"""mzstore: a compressed store for model weights, open by tensor and by slice.

The format is in FORMAT.md; ``save``, ``open`` and ``convert`` are all that most users need.
"""

from mzstore.attach import attach
from mzstore.check import check
from mzstore.convert import convert
from mzstore.deltas import delta, merge
from mzstore.diff import diff
from mzstore.errors import ConflictError, CorruptError, FormatError, MzError, StorageError, UnsupportedError
from mzstore.model import Model, Tensor, open  # noqa: A004  mzstore.open is what users type
from mzstore.recipe import Recipe, Rule
from mzstore.schemes import dequantized
from mzstore.storage import Retry
from mzstore.verify import verify
from mzstore.version import __version__
from mzstore.writer import save

__all__ = [
    "ConflictError",
    "CorruptError",
    "FormatError",
    "Model",
    "MzError",
    "Recipe",
    "Retry",
    "Rule",
    "StorageError",
    "Tensor",
    "UnsupportedError",
    "__version__",
    "attach",
    "check",
    "convert",
    "delta",
    "dequantized",
    "diff",
    "merge",
    "open",
    "save",
    "verify",
]
