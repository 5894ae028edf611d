"""Sparse views: a sparse tensor as SciPy and PyTorch have it, without its zeros. Imports SciPy only when asked for it."""

from typing import Any, Literal, get_args

import numpy as np

from mzstore import frameworks
from mzstore.components import Elements, Open, elements
from mzstore.documents import TensorEntry
from mzstore.dtypes import DTYPES, DType, cast, of_array
from mzstore.encodings.sparse import Sparse

ScipyFormat = Literal["csr", "coo", "csc", "bsr"]
TorchLayout = Literal["coo", "csr", "bsr", "strided"]


def check_format(format: str) -> None:  # noqa: A002  SciPy's name for it
    if format not in get_args(ScipyFormat):
        raise ValueError(f"format {format!r} is none of {', '.join(get_args(ScipyFormat))}")


def check_layout(layout: str) -> None:
    if layout not in get_args(TorchLayout):
        raise ValueError(f"layout {layout!r} is none of {', '.join(get_args(TorchLayout))}")


def to_scipy(name: str, entry: TensorEntry, open_: Open, format: ScipyFormat) -> Any:  # noqa: A002
    """See ``Tensor.to_scipy``. ``entry`` is a stored tensor, which is called ``name``."""
    check_format(format)
    try:
        import scipy.sparse
    except ImportError as error:
        raise ImportError("to_scipy needs SciPy: pip install 'mzstore[sparse]'") from error
    dtype = entry.spec.dtype
    wanted = DTYPES["float32"] if dtype.is_float and dtype.name not in ("float32", "float64") else dtype
    own = _Form(name, entry, open_, wanted, two=format != "coo", kind=format)
    shape = entry.spec.shape
    index = np.int32 if max((own.count, *shape), default=0) < 1 << 31 else np.int64
    if format == "coo":
        positions, values = own.flat()
        coordinates = tuple(at.astype(index) for at in np.unravel_index(positions, shape))
        found = scipy.sparse.coo_array((values, coordinates), shape=shape)
        found.has_canonical_format = True
        return found
    if format == "bsr":
        rows, columns, blocks = own.blocks(index)
        return scipy.sparse.bsr_array((blocks, columns, rows), shape=shape)
    rows, columns, values = own.rows(index)
    found = scipy.sparse.csr_array((values, columns, rows), shape=shape)
    found.has_canonical_format = True
    return found if format == "csr" else found.tocsc()


def to_torch(name: str, entry: TensorEntry, open_: Open, layout: Literal["coo", "csr", "bsr"]) -> Any:
    """See ``Tensor.to_torch``; the same for PyTorch."""
    own = _Form(name, entry, open_, entry.spec.dtype, two=layout != "coo", kind=layout)
    if layout == "coo":
        positions, values = own.flat()
        index = np.empty((len(entry.spec.shape), positions.size), np.int64)
        for axis, at in enumerate(np.unravel_index(positions, entry.spec.shape)):
            index[axis] = at
        return frameworks.torch_coo(index, values, entry.spec.shape)
    compressed = own.rows(np.int64) if layout == "csr" else own.blocks(np.int64)
    return frameworks.torch_compressed(*compressed, entry.spec.shape)


class _Form:
    """The elements of a tensor, with values of ``dtype``. Raises ValueError for one that has no such form."""

    def __init__(self, name: str, entry: TensorEntry, open_: Open, dtype: DType, *, two: bool, kind: str) -> None:
        self._name, self._shape, self._kind = name, entry.spec.shape, kind
        spec, part = entry.spec, entry.part
        if not isinstance(part, Sparse):
            how = "nothing" if part is None else f"{part.encoding!r}"
            raise ValueError(
                f"tensor {name!r} is stored as {how}, not as 'sparse' alone: read its values, tensor[...], and convert them, or "
                "take what is stored, tensor.components()"
            )
        if spec.dtype.packed or spec.dtype.parts == 2 or spec.dtype.name == "float8_e8m0fnu":
            raise ValueError(
                f"tensor {name!r} is {spec.dtype.name}, of which a word of zeros is no zero, or no word a value: "
                "read its values, tensor[...]"
            )
        if two and len(spec.shape) != 2:
            raise ValueError(f"tensor {name!r} has {len(spec.shape)} axes, {kind} is for matrices; 'coo' is for all")
        found = elements(entry, open_)
        values = found.values
        if (stored := of_array(values)) is not dtype:
            values = cast(np.ascontiguousarray(values).view(stored.word), stored, dtype).view(dtype.numpy)
        self._elements = Elements(found.corners, values, found.shape)
        self.count = values.size

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        return self._elements.flat()

    def rows(self, index: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(where in the others each row begins, columns, values) of a matrix."""
        positions, values = self.flat()
        height, width = self._shape
        row = positions // max(width, 1)
        return _begins(row, height, index), (positions - row * width).astype(index), values

    def blocks(self, index: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of rows, columns and values of blocks."""
        found = self._elements
        _, height, across = found.values.shape
        rows, cols = self._shape
        if rows % height or cols % across:
            raise ValueError(
                f"tensor {self._name!r} of {list(self._shape)} is no whole number of its blocks of {[height, across]}: take csr"
            )
        row, column = np.divmod(found.corners, max(cols, 1))
        return _begins(row // height, rows // height, index), (column // across).astype(index), found.values


def _begins(rows: np.ndarray, n: int, index: Any) -> np.ndarray:
    """Where each of ``n`` rows begins among the ascending ``rows``, and where the last one ends."""
    begins = np.zeros(n + 1, index)
    np.cumsum(np.bincount(rows, minlength=n), out=begins[1:])
    return begins
