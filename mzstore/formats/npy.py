"""Arrays of NumPy: ``.npy``, one, and ``.npz``, a ZIP file of several. Pickled objects are refused.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. NumPy's own code reads and writes headers; its ``load`` would
take whole arrays into memory.
"""

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.lib import format as npy

from mzstore.dtypes import BY_NUMPY, DType
from mzstore.errors import FormatError, UnsupportedError
from mzstore.formats import spliced, zips
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import Copied, Copies, PlainTensor, Strided, Swapped, check_unchanged, row_major
from mzstore.sources import ModelSource, TensorSource, blocks
from mzstore.storage import Blob, Sink
from mzstore.tensors import TensorSpec

SUFFIX = ".npy"
HEADER_NBYTES = 1 << 14  # NumPy reads headers of 10,000 characters
NO_NUMBERS = "SUMm"  # kinds: bytes, text, dates, durations
ALIGNMENT = 64


def recognizes(file: Candidate) -> bool:
    return file.start.startswith(npy.MAGIC_PREFIX)


def recognizes_zip(file: Candidate) -> bool:
    return bool(file.members) and all(name.endswith(SUFFIX) for name in file.members)


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    """One tensor, of the name of the file without its suffix."""
    blob, copies = file.blob, Copies.of(opening.stack)
    start = bytes(blob.read(0, min(HEADER_NBYTES, blob.nbytes)))
    name = file.name.removesuffix(SUFFIX) or "array"
    source = _source(name, start, blob, 0, blob.nbytes, copies, blob.url)
    if source is None:
        raise UnsupportedError("an array of text or dates, which no tensor has", where=blob.url)
    return _model(file, "npy", [source], [])


def open_zip(file: Candidate, opening: Opening) -> ModelSource:
    """A tensor for each member. Members that are compressed are inflated to a temporary file when they are first read."""
    blob, copies = file.blob, Copies.of(opening.stack)
    sources, notes = [], []
    for member in file.need_members().values():
        name = member.name.removesuffix(SUFFIX)
        start = zips.start_of(blob, member, HEADER_NBYTES)
        data: Blob | Copied = Copied(copies, partial(zips.blocks, blob, member)) if member.deflated else blob
        at = 0 if member.deflated else member.start
        source = _source(name, start, data, at, member.nbytes, copies, f"{blob.url}, {member.name!r}")
        if source is None:
            notes.append(f"{name:.200} is an array of text or dates, and left out")
        else:
            sources.append(source)
    return _model(file, "npz", sources, notes)


def _model(file: Candidate, kind: str, sources: list[TensorSource], notes: list[str]) -> ModelSource:
    layouts, more = spliced.keep(file.blob, file.name, kind, sources)
    return ModelSource(
        sources,
        sum(source.spec.nbytes for source in sources),
        layouts=layouts,
        notes=[*notes, *more],
        check_unchanged=partial(check_unchanged, (file.blob,)),
    )


def _source(
    name: str, start: bytes, data: Blob | Copied, at: int, nbytes: int, copies: Copies, where: str
) -> TensorSource | None:
    """The array whose file of ``nbytes`` begins at ``at``, with ``start``; None for text and dates."""
    header = io.BytesIO(start)
    try:
        version = npy.read_magic(header)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(header)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(header)
        else:
            raise UnsupportedError(
                f"an array of NumPy in version {version}: a structure, which no tensor is", where=where
            )
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise FormatError(f"not an array of NumPy: {error}", where=where) from error
    if dtype.hasobject:
        raise UnsupportedError("an array of pickled objects: refused, and nothing of it was run", where=where)
    if dtype.kind in NO_NUMBERS:
        return None
    found = BY_NUMPY.get(dtype.newbyteorder("<"))
    if found is None:
        raise UnsupportedError(f"an array of {dtype}, which no tensor has", where=where)
    try:
        spec = TensorSpec(name, found, tuple(shape))
    except ValueError as error:
        raise FormatError(str(error), where=where) from error
    if header.tell() + spec.nbytes > nbytes:
        raise FormatError(f"an array of {spec.nbytes} bytes in a file of {nbytes}", where=where)
    first, big = at + header.tell(), dtype.byteorder == ">"
    if fortran and sum(n > 1 for n in spec.shape) > 1:
        strides = tuple(s * found.parts for s in row_major(spec.shape[::-1])[::-1]) + ((1,) if found.parts > 1 else ())
        return Strided(spec, data, first, strides, copies, big)
    return Swapped(spec, data, first) if big else PlainTensor(spec, data, first)


def _header(spec: TensorSpec) -> bytes:
    """What stands in front of the words. Raises ValueError for dtypes that NumPy does not have by itself."""
    if not _is_numpys(spec.dtype):
        raise ValueError(f"tensor {spec.name!r}: NumPy has no {spec.dtype.name}; cast it, or convert to another format")
    header = io.BytesIO()
    about = {"descr": npy.dtype_to_descr(spec.dtype.numpy), "fortran_order": False, "shape": spec.shape}
    npy.write_array_header_1_0(header, about)
    return header.getvalue()


def _is_numpys(dtype: DType) -> bool:
    return dtype.numpy.type.__module__ == "numpy"


def write_file(
    sink: Sink, model: ModelSource, tensors: Mapping[str, TensorSource], done: Callable[[int], None]
) -> None:
    """The only tensor of a model."""
    if len(tensors) != 1:
        raise ValueError(f"a .npy file holds one tensor, and there are {len(tensors)}: choose one, or convert to .npz")
    (tensor,) = tensors.values()
    sink.write(_header(tensor.spec))
    for block in blocks(tensor):
        sink.write(block.view(np.uint8).data)
        done(block.nbytes)


def write_zip(sink: Sink, model: ModelSource, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
    """As ``numpy.savez`` writes them, uncompressed. Metadata has no place there."""
    headers = {name: _header(tensor.spec) for name, tensor in tensors.items()}
    for name in headers:
        if "\0" in name or name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"tensor {name!r}: no member of a ZIP file may have such a name; rename it")
    with zips.Writer(sink, ALIGNMENT) as archive:
        for name, tensor in tensors.items():
            with archive.open(name + SUFFIX, len(headers[name]) + tensor.spec.nbytes) as member:
                member.write(headers[name])
                for block in blocks(tensor):
                    member.write(block.view(np.uint8).data)
                    done(block.nbytes)


NPY = FileFormat("npy", (SUFFIX,), recognizes, open_file, write=write_file)
NPZ = FileFormat("npz", (".npz",), recognizes_zip, open_zip, write=write_zip)
