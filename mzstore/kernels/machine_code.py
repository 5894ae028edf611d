"""Kernels as machine code in a file, which a process can call without Numba.

Importing Numba costs as much as decoding a gigabyte; LLVM alone, which loads and links the code, a tenth of that. So the first
process that has Numba writes the code of the kernels that their module lists in SIGNATURES, for this processor, and later
ones take it from there. The file lies where Numba keeps its own cache, and is trusted as much.

A signature is the type of the result and those of the arguments: ``uint8[]`` is an array of one dimension, ``uint8[,]``
one of two, ``int64`` a number. Arrays are contiguous.
"""

import ctypes
import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

HERE = Path(__file__).parent
KNOWN = {"memcpy", "memmove", "memset"}  # what code may call: every process has them

_engines: list[Any] = []  # own the memory of the code


class Kernels:
    """What a module of kernels has, as machine code; for what has none, the module itself is imported."""

    def __init__(self, module: str, functions: Mapping[str, "Function"]) -> None:
        self._module = module
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


class Function:
    """One kernel, for each of its signatures; for other arguments, the one that Numba compiles."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name
        self._by_arrays: dict[str, Callable[..., Any]] = {}

    def add(self, signature: str, address: int) -> None:
        result, *arguments = signature.split()
        key, flat = "", list[Any]()
        for argument in arguments:
            dtype, ndim = _parse(argument)
            if ndim:
                key += dtype.char + str(ndim)
                flat += [ctypes.c_void_p] + [ctypes.c_int64] * ndim
            else:
                flat.append(np.ctypeslib.as_ctypes_type(dtype))
        returned = None if result == "void" else np.ctypeslib.as_ctypes_type(np.dtype(result))
        self._by_arrays[key] = ctypes.CFUNCTYPE(returned, *flat)(address)

    def __call__(self, *arguments: Any) -> Any:
        key, flat = "", list[Any]()
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                key += argument.dtype.char + str(argument.ndim) if argument.flags.c_contiguous else "?"
                flat.append(argument.__array_interface__["data"][0])
                flat += argument.shape
            else:
                flat.append(argument)
        found = self._by_arrays.get(key)
        if found is None:
            return getattr(import_module(self._module), self._name)(*arguments)
        return found(*flat)


def exists(module: str) -> bool:
    """Whether there is a file for ``module``, perhaps of another processor. Imports nothing."""
    return any(next(folder.glob(_file_name(module, "*")), None) for folder in _folders())


def load(module: str) -> Kernels | None:
    """The machine code of ``module``; None if there is none for this processor."""
    if not exists(module):
        return None
    import llvmlite.binding as llvm

    for folder in _folders():
        try:
            head, _, code = (folder / _file_name(module, _processor())).read_bytes().partition(b"\n")
            about = json.loads(head)
        except (OSError, ValueError):
            continue
        if about["sha256"] != hashlib.sha256(code).hexdigest():
            continue
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        functions: dict[str, Function] = {}
        for name, signature, symbol in about["functions"]:
            function = functions.setdefault(name, Function(module, name))
            function.add(signature, engine.get_function_address(symbol))
        return Kernels(module, functions)
    return None


def write(kernels: ModuleType) -> None:
    """Write the machine code of a module of kernels, if there is a folder that can be written to."""
    folder = next((folder for folder in _folders() if _writable(folder)), None)
    if folder is None:
        return
    functions, code = _compile(kernels)
    about = {"sha256": hashlib.sha256(code).hexdigest(), "functions": functions}
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".mzstore-", delete=False) as file:
        try:
            file.write(json.dumps(about).encode() + b"\n" + code)
            file.close()
            os.chmod(file.name, 0o644)  # for other users of an installation as well
            os.replace(file.name, folder / _file_name(kernels.__name__, _processor()))
        except BaseException:
            os.unlink(file.name)
            raise


def _compile(kernels: ModuleType) -> tuple[list[tuple[str, str, str]], bytes]:
    """([(kernel, signature, symbol)], an object file)."""
    import llvmlite.binding as llvm

    functions: list[tuple[str, str, str]] = []
    whole = llvm.parse_assembly("")
    for name, signatures in kernels.SIGNATURES.items():
        for signature in signatures:
            functions.append((name, signature, f"mzstore_{len(functions)}"))
            whole.link_in(_compile_one(getattr(kernels, name), *functions[-1][1:]))
    return functions, _target().emit_object(whole)


def _compile_one(kernel: Any, signature: str, symbol: str) -> Any:
    """A module of LLVM with ``kernel`` as the C function ``symbol``, and nothing else in it."""
    import llvmlite.binding as llvm
    import numba

    result, *arguments = signature.split()
    parameters, passed, types = list[str](), list[str](), list[Any]()
    for i, argument in enumerate(arguments):
        dtype, ndim = _parse(argument)
        own = numba.from_dtype(dtype)
        sizes = [f"n{i}_{axis}" for axis in range(ndim)]
        parameters += [f"a{i}", *sizes]
        types += [numba.types.CPointer(own) if ndim else own] + [numba.types.intp] * ndim
        passed.append(f"carray(a{i}, ({', '.join(sizes)},))" if ndim else f"a{i}")
    source = f"def call({', '.join(parameters)}):\n    return kernel({', '.join(passed)})\n"
    names: dict[str, Any] = {"kernel": kernel, "carray": numba.carray}
    exec(source, names)
    returned = numba.void if result == "void" else numba.from_dtype(np.dtype(result))
    compiled = numba.cfunc(returned(*types), error_model="numpy")(names["call"])
    module = llvm.parse_assembly(compiled.inspect_llvm())
    # Numba's function turns an exception into Python's. No kernel raises one, which LLVM sees when it may inline them.
    for value in [*module.functions, *module.global_variables]:
        if value.name == compiled.native_name:
            value.name = symbol
        elif not value.is_declaration:
            value.linkage = "internal"
    builder = llvm.create_pass_builder(_target(), llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    missing = {each.name for each in [*module.functions, *module.global_variables] if each.is_declaration} - KNOWN
    if missing := {name for name in missing if not name.startswith("llvm.")}:
        raise RuntimeError(f"{kernel.__name__}({signature}) needs {', '.join(sorted(missing))} at run time")
    return module


def _parse(argument: str) -> tuple[np.dtype, int]:
    """The dtype, and the number of dimensions: 0 for a number."""
    dtype, bracket, axes = argument.partition("[")
    return np.dtype(dtype), 1 + axes.count(",") if bracket else 0


def _folders() -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
        return
    yield HERE / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mzstore")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _file_name(module: str, processor: str) -> str:
    return f"{module.rpartition('.')[2]}-{_version()}-{processor}.code"


@functools.cache
def _version() -> str:
    """Of all that the code depends on, but for the processor."""
    from importlib import metadata  # which imports much that no start needs

    digest = hashlib.sha256()
    for path in sorted(HERE.glob("[!_]*.py")):
        digest.update(path.read_bytes())
    for package in ("numba", "llvmlite"):
        digest.update(metadata.version(package).encode())
    digest.update(f"{sys.platform} {platform.machine()}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _processor() -> str:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    return f"{llvm.get_host_cpu_name()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


@functools.cache
def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )
