"""For tests of other formats: what a source holds, and objects that would do harm."""

from typing import Any

import numpy as np

from mzstore.formats import open_source
from mzstore.sources import ModelSource


def words(model: ModelSource) -> dict[str, bytes]:
    """The words of all tensors, by name."""
    return {t.spec.name: t.read(0, int(np.prod(t.spec.word_shape))).tobytes() for t in model.tensors}


def read(location: Any) -> dict[str, np.ndarray]:
    """The values of all tensors of the model at ``location``, by name."""
    with open_source(location) as model:
        return {
            t.spec.name: t.spec.dtype.from_words(
                t.read(0, int(np.prod(t.spec.word_shape))).reshape(t.spec.word_shape), t.spec.shape
            )
            for t in model.tensors
        }


class Runs:
    """What a pickle of it would do when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments
