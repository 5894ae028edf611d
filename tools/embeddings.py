"""What other weights do to a sentence embedding model: cosines between its embeddings before and after."""

import ast
import hashlib
import itertools
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 300
BATCH = 32
SENTENCE = re.compile(r"[A-Z][a-z]*( [A-Za-z][A-Za-z'-]*[,;:]?){7,39}\.")


def sentences(count: int = COUNT) -> list[str]:
    """English sentences in the docstrings of the standard library's modules, chosen by their digests.

    They are the same for the same release of Python.
    """
    found = {text for path in sources() for text in _docstring_sentences(path)}
    if len(found) < count:
        raise RuntimeError(
            f"only {len(found)} sentences in the docstrings of {sysconfig.get_path('stdlib')!r}, not {count}"
        )
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def neighbors() -> list[tuple[str, str]]:
    """Sentences of the same docstring that follow one another, the same for the same release of Python."""
    return sorted({pair for path in sources() for pair in itertools.pairwise(_docstring_sentences(path))})


def sources() -> Iterator[Path]:
    """The modules of the standard library."""
    yield from sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def _docstring_sentences(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the sources of others
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                for text in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                    if SENTENCE.fullmatch(text):
                        yield text


class Embedder:
    """A model in a directory of sentence-transformers, run by transformers with mean pooling, in float32 on the CPU.

    Raises ImportError if torch or transformers is missing, RuntimeError if ``directory`` is no such directory.
    """

    def __init__(self, directory: Path) -> None:
        for name in ("modules.json", "config.json", "tokenizer.json"):
            if not (directory / name).exists():
                raise RuntimeError(f"{str(directory)!r} is no directory of a sentence embedding model: no {name}")
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        self._torch = torch
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self._model = transformers.AutoModel.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32
        ).eval()
        texts = sorted(sentences(), key=lambda text: (len(text), text))  # little padding in a batch
        self.sha256 = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        self._batches = [
            tokenizer(texts[i : i + BATCH], padding=True, truncation=True, return_tensors="pt")
            for i in range(0, len(texts), BATCH)
        ]
        self._before = self._embeddings()

    def cosine(self, tensors: dict[str, np.ndarray]) -> dict[str, float]:
        """The mean and the least cosine with ``tensors`` in place of the model's, which stay replaced."""
        torch = self._torch
        state = self._model.state_dict()
        if unknown := tensors.keys() - state.keys():
            raise RuntimeError(f"the model has no tensor {min(unknown)!r}")
        for name, values in tensors.items():
            state[name].copy_(torch.from_numpy(values))
        cosines = (self._embeddings() * self._before).sum(1)
        return {"mean": float(cosines.mean()), "least": float(cosines.min())}

    def _embeddings(self) -> Any:
        torch = self._torch
        found = []
        with torch.inference_mode():
            for batch in self._batches:
                mask = batch["attention_mask"][..., None]
                hidden = self._model(**batch).last_hidden_state.double()
                found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
        return torch.cat(found)
