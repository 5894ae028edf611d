"""Damage at any place of a real archive or tree is found, or changes nothing."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forge import forge, parts
from samples import bits, saved, small_model

import mzstore
from mzstore.errors import MzError
from mzstore.recipe import Rule
from mzstore.storage import Location

ASSETS = {"config.json": b'{"layers": 2}', "sub/vocab.txt": b"a\nb\n" * 500}
METADATA = {"step": 3}
Damage = Callable[[bytearray, random.Random], None]


def flip_a_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def drop_bytes(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 8, 64, 4096])]


def insert_bytes(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 64, 4096]))


def repeat_bytes(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice([1, 4, 46, 512])]
    data[at:at] = piece


def zero_bytes(data: bytearray, rng: random.Random) -> None:
    at, count = rng.randrange(len(data)), rng.choice([1, 4, 16, 512, 4096])
    data[at : at + count] = bytes(len(data[at : at + count]))


def swap_bytes(data: bytearray, rng: random.Random) -> None:
    """Two pieces of equal length change places, as when a disk mixes up sectors."""
    count = rng.choice([4, 46, 512])
    a, b = rng.randrange(max(1, len(data) - count)), rng.randrange(max(1, len(data) - count))
    data[a : a + count], data[b : b + count] = data[b : b + count], data[a : a + count]


def fill_with_ones(data: bytearray, rng: random.Random) -> None:
    at, count = rng.randrange(len(data)), rng.choice([1, 2, 4, 8])
    data[at : at + count] = b"\xff" * len(data[at : at + count])


DAMAGES = [flip_a_bit, truncate, drop_bytes, insert_bytes, repeat_bytes, zero_bytes, swap_bytes, fill_with_ones]


def everything(location: Location) -> object:
    with mzstore.open(location) as model:
        values = {name: bits(array) for name, array in model.load(threads=1).items()}
        return values, dict(model.assets), dict(model.metadata)


def verifies(location: Location) -> bool:
    try:
        return mzstore.verify(location).ok
    except mzstore.UnsupportedError:  # damage that looks like a newer format
        return False


QUANTIZED = mzstore.Recipe(
    [
        Rule(name=["embed.weight", "lm_head.weight"], quantizer="affine", bits=4, group=16),
        Rule(name="layers.0.weight", step=0.01, levels=6),  # with outliers
        Rule(name="layers.0.bias", quantizer="symmetric", bits=10, scales="tensor"),
        Rule(name="layers.1.weight", quantizer="codebook", levels=30, dimension=2),
        Rule(encoding="lossless"),
    ],
    defaults=False,
)


@pytest.fixture(scope="module", params=["fast", "max", "quantized", "parts"])
def archive(request) -> bytes:
    if request.param == "parts":  # each kind of part, and one inside of another
        return forge({}, ASSETS, parts()).archive()
    how = {"recipe": QUANTIZED} if request.param == "quantized" else {"level": request.param}
    return saved(small_model(), assets=ASSETS, metadata=METADATA, **how)


def test_all_encodings_are_there():
    with mzstore.open(saved(small_model(), recipe=QUANTIZED)) as model:
        assert {tensor.encoding for tensor in model.values()} >= {"raw", "planes", "quantized", "quantized + sparse"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_archive(damage, archive):
    expected = everything(archive)
    found = 0
    for seed in range(150):
        data = bytearray(archive)
        damage(data, random.Random(seed))
        try:
            assert everything(bytes(data)) == expected, f"seed {seed} changed a value"
        except MzError:
            found += 1
            if seed < 20:
                assert not verifies(bytes(data)), f"seed {seed} was found by a read only"
    assert found > 40, "much damage is of consequence; the rest is in copies of documents, which a read does not need"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_directory(damage, archive):
    """The last 4 KiB, where every byte counts."""
    expected = everything(archive)
    for seed in range(150):
        tail = bytearray(archive[-4096:])
        damage(tail, random.Random(seed))
        try:
            assert everything(archive[:-4096] + bytes(tail)) == expected, f"seed {seed} changed a value"
        except MzError:
            continue


@pytest.mark.slow
def test_every_bit_of_the_directory(archive):
    expected = everything(archive)
    for at in range(len(archive) - 2500, len(archive)):
        for bit in (0, 3, 7):
            data = bytearray(archive)
            data[at] ^= 1 << bit
            try:
                assert everything(bytes(data)) == expected, f"bit {bit} of byte {at} changed a value"
            except MzError:
                continue


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.zarr"
    mzstore.save(path, small_model(), assets=ASSETS, metadata=METADATA, recipe=QUANTIZED)
    return path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_tree(damage, tree, tmp_path):
    """Chunks and assets have checksums. A tree's documents have none: see the next test."""
    expected = everything(tree)
    files = sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file() and path.name != "zarr.json")
    shutil.copytree(tree, tmp_path / "model.zarr")
    for seed in range(60):
        rng = random.Random(seed)
        path = tmp_path / "model.zarr" / rng.choice(files)
        whole = path.read_bytes()
        data = bytearray(whole)
        damage(data, rng)
        path.write_bytes(data)
        try:
            assert everything(tmp_path / "model.zarr") == expected, f"seed {seed} changed a value"
        except MzError:
            pass
        finally:
            path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_root_of_a_tree(damage, tree, tmp_path):
    """A tree's documents have no checksum, so a read may take a damaged letter for another one; ``verify`` does not."""
    expected = everything(tree)
    shutil.copytree(tree, tmp_path / "model.zarr")
    root = tmp_path / "model.zarr" / "zarr.json"
    whole = root.read_bytes()
    for seed in range(60):
        data = bytearray(whole)
        damage(data, random.Random(seed))
        root.write_bytes(data)
        try:
            same = everything(tmp_path / "model.zarr") == expected
        except MzError:
            same = False
        if not same:
            assert not verifies(tmp_path / "model.zarr"), f"seed {seed} was not found"


@pytest.mark.parametrize("seed", range(20))
def test_missing_objects_of_a_tree(seed, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "model.zarr")
    files = sorted(p for p in (tmp_path / "model.zarr").rglob("*") if p.is_file() and p.name != "zarr.json")
    random.Random(seed).choice(files).unlink()
    with pytest.raises(mzstore.CorruptError):
        everything(tmp_path / "model.zarr")
