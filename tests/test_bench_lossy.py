"""The peers of the benchmark ``lossy`` are what they are said to be, and what it computes is right."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from bench_lossy import DB_PER_BIT, NEAR_DB, interpolated, search
from embeddings import sentences
from ggml import PIECE, ROW, Ggml
from lossy_peers import NF4, NF4_LEVELS, GgufNumpy, LlamaCpp, Matrices, Scales


@pytest.fixture(scope="module")
def ggml():
    try:
        return Ggml(fetch=False)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def normal():
    """A matrix whose size no block divides, and one of more than a piece."""
    rng = np.random.default_rng(3)
    return Matrices(
        {"odd": rng.standard_normal((7, 131), np.float32), "w": rng.standard_normal((PIECE + ROW, 1), np.float32)}
    )


def test_only_large_float_matrices():
    kept = np.ones((3, 200, 200), np.float32)
    others = {
        "small": np.ones((10, 10), np.float32),
        "flat": np.ones(200_000, np.float32),
        "ids": np.ones((400, 400), np.int64),
        "zero": np.zeros((400, 400), np.float32),
    }
    assert Matrices.of({"kept": kept} | others).tensors.keys() == {"kept"}
    with pytest.raises(ValueError, match="no float tensor"):
        Matrices.of(others)


def test_snr_is_a_mean_over_tensors_weighted_by_size():
    """One tensor without error and one, half as large, whose error is a hundredth of its mean square."""
    matrices = Matrices({"a": np.full((2, 8), 5, np.float32), "b": np.full((2, 4), 2, np.float32)})
    decoded = {"a": matrices.tensors["a"], "b": matrices.tensors["b"] + np.float32(0.2)}
    assert matrices.snr_db(decoded) == pytest.approx(20 + 10 * np.log10(3), abs=1e-5)


def test_nf4_keeps_its_own_levels():
    """Groups of all levels, each times a scale: as all scales are equal, their codes lose nothing."""
    levels = np.tile(NF4_LEVELS, 4 * 8).reshape(8, 64) * np.float32(0.75)
    nf4 = NF4(Matrices({"w": levels}))
    nf4.encode()
    assert nf4.decode("float32")["w"].tobytes() == levels.tobytes()


def test_nf4_on_normal_weights(normal):
    nf4 = NF4(normal)
    nf4.encode()
    groups = sum(flat.size // 64 for flat in normal.flat.values())
    supergroups = sum(-(-(flat.size // 64) // 256) for flat in normal.flat.values())
    assert nf4.stored_nbytes() == 32 * groups + groups + 4 * supergroups + 4 * len(normal.tensors)
    assert 20 < normal.snr_db(nf4.decode("float32")) < 21.5


def test_scales_are_as_near_as_eight_bits_allow():
    scales = np.random.default_rng(4).uniform(0.5, 1.5, 700).astype(np.float32)
    found = Scales.of(scales)
    spread = np.abs(scales - scales.mean()).max()
    assert np.abs(found.decode() - scales).max() <= spread / 28 * 1.01  # float8: four bits are exact below 448
    assert found.nbytes == 700 + 3 * 4 + 4


def test_ggml_q8_0_is_what_its_layout_says(ggml, normal):
    """Blocks of a float16 scale and 32 signed bytes."""
    peer = LlamaCpp(normal, ggml, "Q8_0")
    peer.encode()
    decoded = peer.decode("float32")
    for name, packed in peer.packed.items():
        blocks = packed.reshape(-1, 34)
        values = blocks[:, 2:].view(np.int8) * blocks[:, :2].copy().view(np.float16).astype(np.float32)
        a = normal.tensors[name]
        assert values.ravel()[: a.size].tobytes() == decoded[name].tobytes()
        assert np.abs(decoded[name] - a).max() < np.abs(a).max() / 200


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "IQ4_XS", "MXFP4"])
def test_ggml_to_bfloat16_is_its_float32_rounded(ggml, normal, kind):
    peer = LlamaCpp(normal, ggml, kind)
    peer.encode()
    expected = {name: a.astype(ml_dtypes.bfloat16) for name, a in peer.decode("float32").items()}
    for name, a in peer.decode("bfloat16").items():
        assert a.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_gguf_decodes_what_ggml_encodes(ggml, normal, kind):
    pytest.importorskip("gguf")
    source = LlamaCpp(normal, ggml, kind)
    source.encode()
    peer = GgufNumpy(normal, source)
    assert peer.encodes == (kind == "Q8_0")
    peer.encode()
    assert peer.stored_nbytes() == source.stored_nbytes()
    expected = {name: a.copy() for name, a in source.decode("float32").items()}
    for name, a in peer.decode("float32").items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-6, atol=1e-7)


def test_search_comes_near_and_interpolates():
    """A quantizer on a known line of bits and SNR, which misses what it is asked for by less and less."""

    def measure(target):
        snr_db = 0.93 * target - 0.4
        return {"asked": target, "snr_db": snr_db, "bits": snr_db / DB_PER_BIT + 0.3}

    points = search(measure, 22.0)
    assert points[0]["asked"] == 22.0
    assert len(points) <= 4
    assert abs(points[-1]["snr_db"] - 22.0) <= NEAR_DB
    assert interpolated(points, 22.0) == pytest.approx(22.0 / DB_PER_BIT + 0.3)


def test_interpolation_is_between_the_nearest():
    points = [{"snr_db": 10.0, "bits": 1.0}, {"snr_db": 20.0, "bits": 3.0}, {"snr_db": 21.0, "bits": 3.5}]
    assert interpolated(points, 20.5) == 3.25
    assert interpolated(points, 20.0) == 3.0
    assert interpolated(points, 21.0 + DB_PER_BIT) == 4.5  # all lie below


def test_search_ends_where_nothing_changes():
    points = search(lambda target: {"asked": target, "snr_db": 7.0, "bits": 2.0}, 9.0)
    assert [point["asked"] for point in points] == [9.0, 11.0]


def test_sentences_are_many_and_always_the_same():
    found = sentences(200)
    assert found == sentences(300)[:200]
    assert len(set(found)) == 200
    assert all(text.endswith(".") and len(text.split()) >= 8 for text in found)
