"""The command ``mzstore`` as people run it: in processes of its own, with a terminal and without."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from samples import small_model, weights

import mzstore

COMMAND = [sys.executable, "-m", "mzstore"]


def run(*args: object, cwd: Path | None = None, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=120, check=False, **options
    )


def ok(*args: object, **options) -> str:
    """The output of a command that ends well and says nothing on stderr."""
    done = run(*args, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fails(*args: object, status: int = 1, **options) -> str:
    """The one line on stderr of a command that fails."""
    done = run(*args, **options)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("mzstore: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removesuffix("\n")


def on_terminal(*args: object, columns: int = 80, interrupt_at: str | None = None) -> tuple[int, str]:
    """(exit status, all output) of a command whose input and output are a terminal.

    interrupt_at  press Ctrl-C when the command has printed this
    """
    # In full: readline, which pytest may load, sets COLUMNS behind the back of os.environ.
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TERM": "xterm-256color"}
    pid, fd = pty.fork()
    if not pid:
        os.execve(COMMAND[0], [*COMMAND, *map(str, args)], environment)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    output = bytearray()
    with contextlib.suppress(OSError):  # which is how Linux tells that the other side is closed
        while data := os.read(fd, 1 << 16):
            output += data
            if interrupt_at and interrupt_at.encode() in output:
                interrupt_at = None
                os.write(fd, b"\x03")
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a model in several formats."""
    folder = tmp_path_factory.mktemp("models")
    tensors = small_model()
    mzstore.save(folder / "m.mz", tensors, metadata={"format": "pt"}, assets={"config.json": b"{}"})
    mzstore.save(folder / "m.zarr", tensors, metadata={"format": "pt"}, assets={"config.json": b"{}"})
    save_file({"w": weights((300, 40))}, folder / "w.safetensors")
    return folder


def test_help_and_version():
    for args in (("--help",), ("-h",)):
        help_text = ok(*args)
        for command in ("convert", "inspect", "verify", "get", "diff"):
            assert f"\n  {command} " in help_text
    assert ok("--version") == f"mzstore {mzstore.__version__}\n"
    for command in ("convert", "inspect", "verify", "get", "diff"):
        assert ok(command, "--help").startswith(f"Usage: mzstore {command} ")


@pytest.mark.parametrize("args", [[], ["frobnicate"], ["inspect"], ["convert", "a"], ["get", "--nothing"], ["convert", "a", "b", "--threads", "0"]])  # fmt: skip
def test_wrong_usage(args):
    done = run(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Usage: mzstore" in done.stderr + done.stdout


def test_the_entry_point_of_the_package():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[1:] = ['--version']; from mzstore.cli import main; main()"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == f"mzstore {mzstore.__version__}\n"


@pytest.mark.parametrize("args", [["--help"], ["inspect", "m.mz"], ["inspect", "--json", "m.mz"], ["get", "m.mz", "step"], ["verify", "m.mz"]])  # fmt: skip
def test_nothing_heavy_is_imported(args, place):
    """Numba and fsspec take longer to import than these commands to run."""
    code = (
        "import atexit, sys; sys.argv[1:] = sys.argv[1:]; from mzstore.cli import main\n"
        "heavy = {'numba', 'fsspec', 'torch', 'zarr', 'safetensors'}\n"
        "atexit.register(lambda: print('imported:', *sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=place, timeout=120, check=True
    )
    assert done.stderr == "imported:\n"


def test_convert_there_and_back(place, tmp_path):
    line = ok("convert", place / "w.safetensors", tmp_path / "w.mz")
    stored, source = (tmp_path / "w.mz").stat().st_size, (place / "w.safetensors").stat().st_size
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}/w\.mz: {stored / 1024:.1f} KiB, {100 * stored / source:.1f} % of "
        rf"{source / 1024:.1f} KiB, [0-9.]+ s\n",
        line,
    )
    ok("convert", tmp_path / "w.mz", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (place / "w.safetensors").read_bytes()


def test_the_options_of_convert(place, tmp_path):
    for level in ("fast", "balanced", "max"):
        assert (
            ok("convert", place / "m.mz", tmp_path / f"{level}.mz", "--level", level, "--threads", 1, "--quiet") == ""
        )
    assert (tmp_path / "max.mz").stat().st_size <= (tmp_path / "fast.mz").stat().st_size
    ok("convert", place / "m.mz", tmp_path / "named.mz", "--to", "tree")
    assert (tmp_path / "named.mz" / "zarr.json").is_file()
    assert "level 'best' is none of fast, balanced, max" in fails(
        "convert", place / "m.mz", tmp_path / "x.mz", "--level", "best"
    )
    assert "target kind 'best' is none of" in fails("convert", place / "m.mz", tmp_path / "x.mz", "--to", "best")
    assert not (tmp_path / "x.mz").exists()


def test_convert_quantizes(tmp_path):
    save_file({"w": weights((300, 128)), "b": weights((128,), 1)}, tmp_path / "w.safetensors")
    line = ok("convert", "w.safetensors", "w.mz", "--bits", 4, cwd=tmp_path)
    found = re.search(r" s; changed to ([0-9.]+) bits per weight, SNR ([0-9.]+) dB\n$", line)
    with mzstore.open(tmp_path / "w.mz") as model:
        reached = model["w"].quality["reached"]
        assert (float(found[1]), float(found[2])) == (round(reached["bits"], 2), round(reached["snr_db"], 1))
        assert model["b"].quality is None
    assert re.search(r"^w +float32 .* quantized, uniform, \d+ levels .* dB$", ok("inspect", "w.mz", cwd=tmp_path), re.M)
    line = ok("convert", "w.mz", "n.mz", "--nmse", 1e-3, "--level", "max", cwd=tmp_path)
    assert 30 <= float(re.search("SNR ([0-9.]+) dB", line)[1]) < 31  # of few values, which leave no choice of the error
    (tmp_path / "r.toml").write_text('[[rule]]\nname = "w"\nquantizer = "nf4"\n')
    np.savez(tmp_path / "i.npz", w=np.arange(128))
    ok("convert", "w.safetensors", "r.mz", "--recipe", "r.toml", "--importance", "i.npz", "-q", cwd=tmp_path)
    assert "nf4" in ok("inspect", "r.mz", cwd=tmp_path)
    assert ok("convert", "w.mz", "l.mz", "--lossless", cwd=tmp_path).endswith(" s\n")
    assert (tmp_path / "l.mz").read_bytes() == (tmp_path / "w.mz").read_bytes()


def test_convert_prunes_and_factorizes(tmp_path):
    save_file({"w": weights((300, 128)), "b": weights((128,), 1)}, tmp_path / "w.safetensors")
    for args, asked in (
        (("--sparsity", 0.9), {"encoding": "sparse", "sparsity": 0.9}),
        (
            ("--sparsity", 0.5, "--bits", 4),
            {"encoding": "sparse", "sparsity": 0.5, "quantizer": "uniform", "bits": 4.0},
        ),
        (("--rank", 8), {"encoding": "lowrank", "rank": 8}),
    ):
        ok("convert", "w.safetensors", "w.mz", *args, "-q", cwd=tmp_path)
        with mzstore.open(tmp_path / "w.mz") as model:
            assert model["w"].quality["asked"] == asked
            assert model["b"].quality is None
    (tmp_path / "r.toml").write_text('[[rule]]\nparts = ["quantized bits=3", "sparse top=0.5%"]\n')
    ok("convert", "w.safetensors", "w.mz", "--recipe", "r.toml", "-q", cwd=tmp_path)
    with mzstore.open(tmp_path / "w.mz") as model:
        assert model["w"].encoding == "quantized + sparse"
    for args, says in (
        (("--sparsity", 0.9, "--rank", 8), "--sparsity and --rank exclude each other"),
        (("--lossless", "--rank", 8), "--lossless and --rank exclude each other"),
        (("--sparsity", 2), "sparsity = 2.0: a number above 0 and below 1 will do"),
    ):
        assert says in fails("convert", "w.safetensors", "x.mz", *args, cwd=tmp_path)


def test_what_convert_cannot_quantize(place, tmp_path):
    def refused(*args: object) -> str:
        return fails("convert", place / "w.safetensors", tmp_path / "x.mz", *args)

    assert "--bits and --nmse exclude each other" in refused("--bits", 4, "--nmse", 0.1)
    assert "--lossless and --recipe exclude each other" in refused("--lossless", "--recipe", "r.toml")
    assert "--importance is for quantizing" in refused("--importance", "i.npz")
    assert "bits = 40.0: a number above 0 and up to 16" in refused("--bits", 40)
    assert "No such file" in refused("--recipe", tmp_path / "r.toml")
    assert "No such file" in refused("--bits", 4, "--importance", tmp_path / "i.npz")
    (tmp_path / "r.toml").write_text("bits = 4")
    assert "r.toml: 'bits' stands before any rule" in refused("--recipe", tmp_path / "r.toml")
    assert "a recipe is for archives and trees" in refused("--bits", 4, "--to", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]
    done = ok("convert", place / "m.mz", tmp_path / "x.mz", "--bits", 4)  # which has small tensors only
    assert done.endswith(" s; no tensor was changed\n")


def test_convert_selects_casts_renames_checks_and_reports(place, tmp_path):
    edits = ("--exclude", "ids", "--exclude", "z*", "--dtype", "*.bias=float32", "--dtype", "bfloat16", "--rename", "layers.*=>h.*", "--rename", r"/^(\w+)\.weight$/=>\1.w")  # fmt: skip
    before, *lines = ok("convert", place / "m.mz", "m.mz", *edits, "--dry-run", cwd=tmp_path).splitlines()
    assert before.startswith("embed.weight => embed.w")
    assert lines[1].startswith("layers.0.bias => h.0.bias")
    assert "float16 -> float32" in lines[1]
    assert "11 tensors as archive: about " in lines[-4]
    assert not list(tmp_path.iterdir())
    lines = ok("convert", place / "m.mz", "m.mz", *edits, "--check", "--report", "r.json", cwd=tmp_path).splitlines()
    assert lines[1:] == [
        "2 of 13 tensors left out",
        "4 of 13 tensors cast",
        "5 of 13 tensors renamed",
        "11 tensors compared with the source: 11 the same bit for bit as they were cast",
    ]
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["ok"], report["totals"]["checked"]) == (True, 11)
    assert run("diff", place / "m.mz", "m.mz", "--rename", "layers.*=>h.*", "-q", cwd=tmp_path).returncode == 1
    assert "rename 'a': PATTERN=>REPLACEMENT will do" in fails(
        "convert", place / "m.mz", "x.mz", "--rename", "a", cwd=tmp_path
    )
    assert "--dtype '=float16': DTYPE or GLOB=DTYPE" in fails(
        "convert", place / "m.mz", "x.mz", "--dtype", "=float16", cwd=tmp_path
    )
    assert "include: no tensor matches 'x'" in fails("convert", place / "m.mz", "x.mz", "--include", "x", cwd=tmp_path)
    assert not (tmp_path / "x.mz").exists()


def test_inspect(place):
    printed = json.loads(ok("inspect", "m.mz", "--json", cwd=place))
    assert printed["location"] == "m.mz"
    assert [tensor["name"] for tensor in printed["tensors"]] == list(small_model())
    for name in ("m.mz", "m.zarr"):
        lines = ok("inspect", name, cwd=place).splitlines()
        for tensor in printed["tensors"]:
            (line,) = [line for line in lines if line.startswith(f"{tensor['name']} ")]
            assert f"{tensor['dtype']} " in line
            assert str(tensor["shape"]) in line
        assert "  config.json  2 B" in lines
        assert not any("\x1b" in line for line in lines)


def test_verify(place, tmp_path):
    line = ok("verify", "m.mz", cwd=place)
    assert re.fullmatch(r"m\.mz: 13 tensors, \d+ chunks, 1 asset, 50\.0 KiB of values: all as it should be\n", line)
    assert ok("verify", "m.mz", "--quiet", cwd=place) == ""
    assert json.loads(ok("verify", "m.zarr", "--json", cwd=place))["ok"] is True
    spoilt = bytearray((place / "m.mz").read_bytes())
    spoilt[100] ^= 1
    (tmp_path / "m.mz").write_bytes(spoilt)
    done = run("verify", "m.mz", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "mzstore: 1 problem in 'm.mz'\n"
    assert re.fullmatch(
        r"tensor 'embed\.weight', chunk \[.*\]: the checksum .* \(FORMAT\.md payload-3\)\n", done.stdout
    )
    done = run("verify", "m.mz", "--json", "--threads", 2, cwd=tmp_path)
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["tensor"] == "embed.weight"


def test_get(place, tmp_path):
    tensors = small_model()
    ok("get", place / "m.mz", "layers.0.weight[10:20, ::-3]", "-o", tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), tensors["layers.0.weight"][10:20, ::-3])
    done = run("get", place / "m.mz", "embed.weight[-1]", "--output", tmp_path / "b.npy")
    assert done.returncode == 0
    assert done.stderr == "mzstore: saved as uint16, the raw bits: a .npy file has no bfloat16\n"
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), tensors["embed.weight"].view(np.uint16)[-1])
    piped = subprocess.run([*COMMAND, "get", str(place / "m.mz"), "ids", "-o", "-"], capture_output=True, timeout=120, check=True)  # fmt: skip
    np.testing.assert_array_equal(np.load(io.BytesIO(piped.stdout)), tensors["ids"])
    assert ok("get", place / "m.mz", "step") == "int64 []\n12345\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_diff(place, tmp_path):
    equal = "13 of 13 common tensors equal; metadata and assets are equal\n"
    assert ok("diff", "m.mz", "m.zarr", cwd=place) == equal
    assert ok("diff", "m.mz", "m.zarr", "--quiet", cwd=place) == ""
    assert json.loads(ok("diff", "m.mz", "m.zarr", "--json", cwd=place))["equal"] is True
    mzstore.save(tmp_path / "b.mz", small_model() | {"ids": small_model()["ids"] + 1}, metadata={"format": "pt"})
    done = run("diff", place / "m.mz", tmp_path / "b.mz")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "~ ids  int64 [17, 3]",
        f"    51 of 51 values differ; max error 1, RMSE 1, NMSE {51 / (small_model()['ids'] ** 2).sum():.2g}",
        "- asset config.json",
        "12 of 13 common tensors equal",
    ]
    done = run("diff", place / "m.mz", tmp_path / "b.mz", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["differing"][0]["name"] == "ids"
    assert "No such file" in fails("diff", place / "m.mz", tmp_path / "c.mz", status=2)


def test_errors_are_one_line(place, tmp_path):
    (tmp_path / "junk.mz").write_bytes(b"junk" * 100)
    for command in ("inspect", "verify"):
        assert "No such file" in fails(command, tmp_path / "nothing.mz")
    assert "not an mzstore archive" in fails("inspect", tmp_path / "junk.mz")
    assert "nearest: 'layers.0.weight'" in fails("get", place / "m.mz", "layers.0.wieght")
    assert "index 50 is out of bounds for axis 0 with size 50" in fails("get", place / "m.mz", "layers.0.weight[50]")
    assert "is no slice" in fails("get", place / "m.mz", "layers.0.weight[exit()]")
    assert "cannot write" in fails("get", place / "m.mz", "ids", "-o", tmp_path / "no" / "where.npy")
    assert "cannot write" in fails("convert", place / "m.mz", tmp_path / "no" / "where.mz")
    assert r"no tensor 'a\nb'" in fails("get", place / "m.mz", "a\nb")
    assert "\x1b" not in fails("get", place / "m.mz", "a\x1b[31m")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_terminal_cannot_write(encoding, tmp_path):
    mzstore.save(tmp_path / "m.mz", {"模型": np.zeros(3)})
    assert r"\u6a21\u578b " in ok("inspect", tmp_path / "m.mz", env=os.environ | {"PYTHONIOENCODING": encoding})


def test_memory_that_no_machine_has(forged, tmp_path):
    del forged.nodes["tied"]
    forged.nodes["constant"]["attributes"]["mzstore"]["shape"] = [1 << 30, 1 << 20]
    (tmp_path / "m.mz").write_bytes(forged.archive())
    assert "bytes" in fails("get", tmp_path / "m.mz", "constant", "-o", tmp_path / "w.npy")
    assert ok("get", tmp_path / "m.mz", "constant[-1, ::500000]").splitlines()[1] == "[7 7 7]"


def test_a_closed_pipe(place):
    """As in ``mzstore inspect m.mz | head -1``, which ends before all is written."""
    for args in (["inspect", "m.mz"], ["inspect", "m.mz", "--json"], ["get", "m.mz", "embed.weight"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*COMMAND, *args], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=place, timeout=120, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")


def test_tables_on_a_terminal(place):
    status, text = on_terminal("inspect", place / "m.mz", columns=100)
    assert status == 0
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 100
    assert re.search(r"^layers\.0\.weight +float32 +\[50, 70\] ", plain, re.MULTILINE)
    status, text = on_terminal("inspect", place / "m.mz", columns=60)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 60
    assert re.search(r"^layers\.0\.weight\n  float32 \[50, 70\] ", plain, re.MULTILINE)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A file that takes seconds to convert."""
    folder = tmp_path_factory.mktemp("large")
    values = np.random.default_rng(0).standard_normal((40, 1 << 20)).astype(np.float32)
    save_file({"w": values}, folder / "w.safetensors")
    return folder


def test_a_bar_on_a_terminal(large, tmp_path):
    """It shows how far the work is, and is gone when it is done."""
    status, text = on_terminal("convert", large / "w.safetensors", tmp_path / "w.mz", "--level", "max")
    assert status == 0
    assert "encode " in text
    assert "/160.0 MiB" in text
    assert re.search(r"\x1b\[2K[^\n\x1b]*w\.mz: [0-9.]+ MiB, [0-9.]+ % of 160\.0 MiB, [0-9.]+ s\n$", text)
    status, text = on_terminal("convert", tmp_path / "w.mz", tmp_path / "quiet.safetensors", "--quiet")
    assert (status, text) == (0, "")


def test_ctrl_c_ends_silently_and_leaves_nothing(large, tmp_path):
    status, text = on_terminal(
        "convert", large / "w.safetensors", tmp_path / "w.mz", "--level", "max", interrupt_at="encode "
    )
    assert status == 130
    assert not re.search("(?i)traceback|error|abort|interrupt", text)
    assert list(tmp_path.iterdir()) == []
