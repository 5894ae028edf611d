"""What a state is made of comes back with the same types, order and values; all else is refused by its path."""

import contextlib
import json
import math
import random
import struct
from collections import OrderedDict, defaultdict, namedtuple

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mzstore.checkpoints.state import MAX_DEPTH, decode, encode, tensors_of
from mzstore.errors import FormatError


def again(state):
    structure, tensors = encode(state)
    structure = json.loads(json.dumps(structure, allow_nan=False))
    assert [name for name, _ in tensors_of(structure)] == list(tensors)
    return decode(structure, lambda name, _: tensors[name])


def same(a, b) -> bool:
    """Equal in type, order and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(type(k) is type(j) for k, j in zip(a, b, strict=True)) and all(same(a[k], b[k]) for k in a)  # fmt: skip
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.requires_grad == b.requires_grad and torch.equal(a, b)
    return a == b


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=100),
    st.sampled_from([np.float32(math.nan), np.int64(-1), np.bool_(True), np.float64(0.1), ml_dtypes.bfloat16(1.5)]),
    st.sampled_from([np.arange(3), np.zeros((0, 2), np.float32), np.array(2.0), torch.arange(3), torch.tensor(1.5)]),
)
keys = st.text(st.characters(exclude_categories=["Cs"])) | st.integers()
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(states)
def test_every_state_comes_back(state):
    assert same(again(state), state)


@settings(deadline=None, max_examples=300)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dict", "tuple", "int", "float", "array", "tensor", "ordered", "dict_items", "metadata", "bytes", "long_bytes", "scalar", "dtype", "x"]) , inner, max_size=3), max_leaves=8))  # fmt: skip
def test_other_json_is_a_state_or_refused(doc):
    with contextlib.suppress(FormatError):
        decode(doc, lambda *_: np.zeros(1, np.uint8))


def test_optimizer_and_random_states_come_back():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    generator = np.random.default_rng(5)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": [random.getstate(), np.random.get_state(), generator.bit_generator.state, torch.get_rng_state()],
        "loader": {"epoch": 3, "order": torch.randperm(9), "seed": 2**127},
        "long": b"x" * 5000,
    }
    back = again(state)
    assert same(back, state)
    assert back["model"]._metadata == state["model"]._metadata
    model.load_state_dict(back["model"])
    optimizer.load_state_dict(back["optimizer"])
    random.setstate(back["random"][0])
    np.random.set_state(back["random"][1])
    torch.set_rng_state(back["random"][3])


def test_parameters_stay_parameters():
    back = again({"w": torch.nn.Parameter(torch.ones(2)), "x": torch.ones(2, requires_grad=True)})
    assert type(back["w"]) is torch.nn.Parameter
    assert back["w"].requires_grad
    assert type(back["x"]) is torch.Tensor
    assert back["x"].requires_grad


def test_names_are_paths_and_differ():
    _, tensors = encode(
        {"a.b": np.zeros(1), "a": {"b": np.zeros(1), "b~2": np.zeros(1)}, "l": [np.zeros(1)], 3: np.zeros(1)}
    )
    assert list(tensors) == ["a.b", "a.b~2", "a.b~2~2", "l.0", "3"]


class Odd:
    pass


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Odd(), "Odd"),
        (Odd, "type"),
        (lambda: 0, "function"),
        ({1, 2}, "set"),
        (bytearray(1), "bytearray"),
        (Pair(1, 2), "Pair"),
        (defaultdict(int), "defaultdict"),
        (np.array([Odd()]), "object"),
        (np.array(["text"]), "<U4"),
        (np.array([1.0], ">f4"), "byte order"),
        (np.datetime64(1, "s"), "datetime64"),
        (np.ma.zeros(1), "MaskedArray"),
        (torch.float32, "dtype"),
        ({(1, 2): 3}, "(1, 2)"),
        ({True: 3}, "True"),
        ("\ud800", "Unicode"),
    ],
)
def test_what_is_no_state_is_refused_by_its_path(value, kind):
    with pytest.raises((TypeError, ValueError)) as refused:
        encode({"optimizer": {"state": {3: {"hook": [0, value]}}}})
    assert "optimizer.state[3].hook[1]" in str(refused.value)
    assert kind in str(refused.value)


def test_numbers_that_no_reader_of_json_takes_are_refused():
    with pytest.raises(ValueError, match=r"a\[0\]: an integer of more than"):
        encode({"a": [10**5000]})


def test_circles_are_refused():
    circle: list = []
    circle.append(circle)
    with pytest.raises(ValueError, match="in a circle"):
        encode({"a": circle})


def test_the_deepest_state_is_read_by_any_reader_of_json():
    deep: dict = {}
    for _ in range(MAX_DEPTH - 1):
        deep = {1: deep}
    assert same(again(deep), deep)
