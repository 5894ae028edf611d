"""Importing costs little, and an installation that nobody may write to works."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from samples import WITHOUT_PRIVILEGES

PACKAGE = Path(__file__).parent.parent / "mzstore"
HEAVY = ["numba", "torch", "zarr", "fsspec", "rich", "safetensors", "numcodecs", "typer", "asyncio"]


def run(code: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_mzstore_imports_nothing_heavy():
    found = run("import sys, mzstore; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert not set(HEAVY) & set(found)


@pytest.mark.parametrize("what", ["save and load", "slice"])
def test_small_work_imports_nothing_heavy(what, tmp_path):
    code = f"""
        import sys
        import numpy as np
        import mzstore
        path = {str(tmp_path / "model.mz")!r}
        mzstore.save(path, {{"w": np.random.default_rng(0).standard_normal((300, 500)).astype("f4")}})
        with mzstore.open(path) as model:
            model["w"][3, 4:9] if {what == "slice"} else model.load()
        print(*{{name.partition('.')[0] for name in sys.modules}})
    """
    assert not set(HEAVY) & set(run(code).split())


KERNELS = """
    import io, sys
    import numpy as np
    import mzstore
    from mzstore import kernels
    assert mzstore.__file__.startswith({place!r}), mzstore.__file__
    kernels.PAYS_FROM_NBYTES = 1
    values = (np.random.default_rng(0).standard_normal((400, 500)) * 0.02).astype("f4")
    file = io.BytesIO()
    mzstore.save(file, {{"w": values}}, threads=1)
    with mzstore.open(file.getvalue()) as model:
        assert model.load(threads=1)["w"].tobytes() == values.tobytes()
    assert "mzstore.kernels.planes" in sys.modules
    print("it works")
"""


def test_a_read_only_installation(tmp_path):
    """Neither the package, nor the home, nor a cache directory can be written: the kernels are compiled anew."""
    place = tmp_path / "site"
    shutil.copytree(PACKAGE, place / "mzstore", ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "home"
    home.mkdir()
    for path in [home, *place.rglob("*"), place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    environment = {
        "PYTHONPATH": str(place),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        code = WITHOUT_PRIVILEGES + textwrap.dedent(KERNELS.format(place=str(place)))
        assert run(code, cwd=tmp_path, **environment) == "it works\n"
        assert not list(place.rglob("__pycache__"))
    finally:
        for path in [place, home, *place.rglob("*")]:
            path.chmod(0o755)
