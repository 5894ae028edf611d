"""Numba kernels: bare loops over arrays. Their callers have checked every size; nothing is checked here.

This is the one door to Numba: its options, and the question whether a kernel pays. Importing Numba and
loading a cached kernel costs as much time as decoding some hundred megabytes with NumPy, so a process
starts with NumPy and changes over once it has done that much work (or knows that it will).
"""

import importlib
import os
import threading
from types import ModuleType

# Numba takes 0.2 to 0.4 s to import with its kernels cached; NumPy needs about 0.4 ns per byte more than they do.
PAYS_FROM_NBYTES = 768 << 20

PLANES = "mzstore.kernels.planes"

# With this set, Numba leaves the kernels to the interpreter, where they are slower than NumPy by far.
_never = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

_lock = threading.Lock()
_done_by_numpy = 0
_kernels: dict[str, ModuleType] = {}  # by module
_loading = False


def _after_fork() -> None:
    """What another thread held when the process forked is never released: our lock, and the import of the kernels."""
    global _lock, _never
    _lock = threading.Lock()
    _never = _never or _loading


os.register_at_fork(after_in_child=_after_fork)


def pays(nbytes: int) -> bool:
    """Whether to use the Numba kernels for ``nbytes`` more bytes of values: counts them, so call it once for each."""
    global _done_by_numpy
    if _never:
        return False
    if _loading:  # by another thread, for some tenths of a second; NumPy is quicker than waiting for it
        return False
    if _kernels:
        return True
    with _lock:
        _done_by_numpy += nbytes
        return _done_by_numpy >= PAYS_FROM_NBYTES


def expect(nbytes: int) -> None:
    """Load the kernels now if so much work is ahead that they will pay."""
    if nbytes >= PAYS_FROM_NBYTES and not _never:
        load()


def load() -> ModuleType:
    """The module of the kernels; imports Numba the first time."""
    return _load(PLANES)


def load_quantized() -> ModuleType:
    """The module of the kernels of quantized tensors; imports Numba the first time."""
    return _load("mzstore.kernels.quantized")


def load_sparse() -> ModuleType:
    """The module of the kernels of sparse parts; imports Numba the first time."""
    return _load("mzstore.kernels.sparse")


def load_lowrank() -> ModuleType:
    """The module of the kernels of low-rank parts; imports Numba the first time."""
    return _load("mzstore.kernels.lowrank")


def _load(name: str) -> ModuleType:
    global _loading
    found = _kernels.get(name)
    if found is None:
        with _lock:
            if name not in _kernels:
                _loading = True
                try:
                    module = importlib.import_module(name)
                    if name == PLANES:
                        module.first_calls()
                    _kernels[name] = module
                finally:
                    _loading = False
            found = _kernels[name]
    return found
