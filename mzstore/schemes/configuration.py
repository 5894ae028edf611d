"""The configuration that says how a checkpoint is quantized: ``quantization_config`` in config.json, or a file of its own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mzstore import documents
from mzstore.dtypes import DTYPES, DType
from mzstore.errors import FormatError

CONFIG = "config.json"
KEYS = ("quantization_config", "compression_config")  # the second of early compressed-tensors
OWN_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}  # of AutoGPTQ and AutoAWQ: where there is none in config.json
MAX_NBYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Configuration:
    """How the tensors below ``prefix`` are quantized.

    where   the file
    doc     what it says, not checked
    method  ``quant_method``
    dtype   of the model's plain weights; bfloat16 if it does not say
    """

    prefix: str
    where: str
    doc: Mapping[str, Any]
    method: str
    dtype: DType

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of ``names`` that there is. Raises FormatError for what is no integer, or not there and no default."""
        for name in names:
            if name in self.doc and self.doc[name] is not None:
                if type(self.doc[name]) is not int:
                    raise self.refuse(f"{name} is {self.doc[name]!r:.100}, not an integer")
                return int(self.doc[name])
        if default is None:
            raise self.refuse(f"it does not say {names[0]}")
        return default

    def flag(self, name: str) -> bool:
        if not isinstance(self.doc.get(name, False), bool):
            raise self.refuse(f"{name} is {self.doc[name]!r:.100}, not true or false")
        return bool(self.doc.get(name, False))

    def text(self, *names: str, default: str = "") -> str:
        """The first of ``names`` that there is, in lower case."""
        for name in names:
            if self.doc.get(name) is not None:
                if not isinstance(self.doc[name], str):
                    raise self.refuse(f"{name} is {self.doc[name]!r:.100}, not a string")
                return str(self.doc[name]).lower()
        return default

    def refuse(self, problem: str) -> FormatError:
        return FormatError(f"the quantization of this checkpoint: {problem}", where=self.where)


def find(paths: Iterable[str], read: Callable[[str], bytes]) -> list[Configuration]:
    """Those of the model and of its folders; none that are for a folder in which nothing is quantized."""
    by_folder: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if name == CONFIG or name in OWN_FILES:
            by_folder.setdefault(folder + slash, {})[name] = path
    found = []
    for prefix, files in by_folder.items():
        if CONFIG in files:
            config = documents.load(read(files[CONFIG]), where=files[CONFIG], clause="")
            of_model = of_config(config, prefix, files[CONFIG])
            if of_model is not None:
                found.append(of_model)
                continue
        for name, method in OWN_FILES.items():
            if name in files:
                doc = documents.load(read(files[name]), where=files[name], clause="")
                found.append(_of(prefix, files[name], doc, method, _dtype(config if CONFIG in files else {})))
                break
    return found


def of_config(config: Mapping[str, Any], prefix: str, where: str) -> Configuration | None:
    """What a config.json says; None if it says nothing."""
    part = in_config(config)
    return None if part is None else _of(prefix, where, config_part(config, part), "", _dtype(config))


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of plain weights."""
    plain = {key: value for key, value in config.items() if key not in KEYS}
    inner = plain.get("text_config")
    if isinstance(inner, Mapping):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in KEYS}
    return plain


def in_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Where in a config.json it stands; None if nowhere."""
    for above in ((), ("text_config",)):
        inner = config_part(config, above)
        for key in KEYS:
            if isinstance(inner, Mapping) and inner.get(key) is not None:
                return (*above, key)
    return None


def config_part(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(config, Mapping):
            return None
        config = config.get(key)  # type: ignore[assignment]
    return config


def _of(prefix: str, where: str, doc: Any, method: str, dtype: DType) -> Configuration:
    if not isinstance(doc, Mapping):
        raise FormatError(f"the quantization of this checkpoint is {doc!r:.100}, not a JSON object", where=where)
    named = doc.get("quant_method", method)
    if not isinstance(named, str) or not named:
        raise FormatError(f"quant_method is {named!r:.100}, not a name", where=where)
    return Configuration(prefix, where, doc, named.lower(), dtype)


def _dtype(config: Mapping[str, Any]) -> DType:
    inner = config.get("text_config")
    for doc in (config, inner if isinstance(inner, Mapping) else {}):
        for name in (doc.get("dtype"), doc.get("torch_dtype")):
            name = str(name).removeprefix("torch.")
            if name in ("float16", "bfloat16", "float32"):
                return DTYPES[name]
    return DTYPES["bfloat16"]
