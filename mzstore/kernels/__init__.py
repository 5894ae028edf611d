"""Numba kernels: bare loops over arrays. Their callers have checked every size; nothing is checked here.

This is the one door to Numba: its options, and the question whether a kernel pays. Importing Numba and
loading a cached kernel costs as much time as decoding some hundred megabytes with NumPy, so a process
starts with NumPy and changes over once it has done that much work (or knows that it will). It does so sooner
where an earlier process has left the machine code of kernels, which takes no Numba.
"""

import functools
import importlib
import os
import threading
from typing import Any

from mzstore.kernels import machine_code

# NumPy needs about 0.4 ns per byte more than the kernels do. Numba takes 0.2 to 0.4 s to import with its kernels cached,
# machine code some 0.025 s.
PAYS_FROM_NBYTES = 768 << 20
CODE_PAYS_FROM_NBYTES = 64 << 20

PLANES = "mzstore.kernels.planes"

# With this set, Numba leaves the kernels to the interpreter, where they are slower than NumPy by far.
_never = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

_lock = threading.Lock()
_done_by_numpy = 0
_kernels: dict[str, Any] = {}  # by module
_loading = False
_writing = threading.Lock()  # held while machine code is written


def _after_fork() -> None:
    """What another thread held when the process forked is never released: our lock, and the import of the kernels."""
    global _lock, _never
    _lock = threading.Lock()
    _never = _never or _loading or _writing.locked()


os.register_at_fork(after_in_child=_after_fork)


def pays(nbytes: int) -> bool:
    """Whether to use the kernels for ``nbytes`` more bytes of values: counts them, so call it once for each."""
    global _done_by_numpy
    if _never:
        return False
    if _loading:  # by another thread, for some tenths of a second; NumPy is quicker than waiting for it
        return False
    if _kernels:
        return True
    with _lock:
        _done_by_numpy += nbytes
        return _enough(_done_by_numpy)


@functools.cache  # it is asked for each chunk, and looks into folders
def _has_code() -> bool:
    return machine_code.exists(PLANES)


def _enough(nbytes: int) -> bool:
    return nbytes >= PAYS_FROM_NBYTES or (nbytes >= CODE_PAYS_FROM_NBYTES and _has_code())


def expect(nbytes: int) -> None:
    """Load the kernels now if so much work is ahead that they will pay."""
    if not _never and _enough(nbytes):
        load()


def load() -> Any:
    """The kernels of planes; as machine code, or the module, which imports Numba the first time."""
    return _load(PLANES)


def load_quantized() -> Any:
    """The kernels of quantized tensors, in the same way."""
    return _load("mzstore.kernels.quantized")


def load_sparse() -> Any:
    """The kernels of sparse parts, in the same way."""
    return _load("mzstore.kernels.sparse")


def load_lowrank() -> Any:
    """The kernels of low-rank parts, in the same way."""
    return _load("mzstore.kernels.lowrank")


def load_ggml() -> Any:
    """The kernels of ggml's blocks, in the same way."""
    return _load("mzstore.kernels.ggml")


def _load(name: str) -> Any:
    global _loading
    found = _kernels.get(name)
    if found is None:
        with _lock:
            if name not in _kernels:
                _loading = True
                try:
                    _kernels[name] = machine_code.load(name) or _import(name)
                finally:
                    _loading = False
            found = _kernels[name]
    return found


def _import(name: str) -> Any:
    module = importlib.import_module(name)
    if name == PLANES:
        module.first_calls()
    threading.Thread(target=_write, args=(module,), name="mzstore-machine-code").start()
    return module


def _write(module: Any) -> None:
    """For later processes; takes seconds, once."""
    with _writing:
        machine_code.write(module)
