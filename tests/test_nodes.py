"""Node names are safe everywhere, and no two names share one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzstore.nodes import MAX_NODE_LENGTH, Namer, encode, is_key, is_node_name

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
AWKWARD = ["", ".", "..", "...", "a.", "CON", "con.weight", "LPT1", "Aux.x", "__init__", "zarr.json", "assets", "layouts",
           "Zarr.json", "ASSETS", "a/b", "a\\b", "a b", "a\0", "%", "%2E", "~2", "a~2", "é", "e\u0301", "\U0001f600"]  # fmt: skip
RESERVED_BY_WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def assert_safe(node: str) -> None:
    assert is_node_name(node)
    assert len(node) <= MAX_NODE_LENGTH
    assert not node.startswith((".", "__"))
    assert not node.endswith((".", " "))
    assert node.lower() not in ("zarr.json", "assets", "layouts")
    assert node.partition(".")[0].lower() not in RESERVED_BY_WINDOWS


@given(NAMES)
def test_a_node_name_is_safe(name):
    assert_safe(encode(name))


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_name(name):
    assert_safe(encode(name))


@given(st.lists(NAMES, unique=True, max_size=30))
def test_nodes_stay_distinct_where_case_folds(names):
    namer = Namer()
    nodes = [namer.node(name) for name in [*names, *AWKWARD]]
    assert len({node.casefold() for node in nodes}) == len(nodes)
    for node in nodes:
        assert_safe(node)


def test_ordinary_names_stay_as_they_are():
    for name in ("model.layers.0.mlp.up_proj.weight", "a-b_c.1", "W", "0"):
        assert encode(name) == name


def test_long_names_that_differ_at_the_end():
    namer = Namer()
    nodes = {namer.node("x" * 1000 + str(i)) for i in range(50)}
    assert len(nodes) == 50


def test_many_of_one_fold():
    namer = Namer()
    names = ["".join(c.upper() if bits >> i & 1 else c for i, c in enumerate("weight")) for bits in range(64)]
    nodes = [namer.node(name) for name in names]
    assert len({node.casefold() for node in nodes}) == 64


@given(st.lists(NAMES.filter(lambda name: name and "/" not in name), min_size=1, max_size=4))
def test_paths_keep_their_folders(segments):
    folder, *encoded = Namer().path("/".join(segments)).split("/")
    assert folder == "assets"
    assert len(encoded) == len(segments)
    for segment in encoded:
        assert is_node_name(segment)


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a b", "é", "a\n", "a" * 201, "a\0", "a:b", "a\\b"])
def test_what_is_no_node_name(text):
    assert not is_node_name(text)


@given(st.text("aZ9._%~-/ \n\u00e9", max_size=12))
def test_a_key_is_node_names_with_slashes_between_them(text):
    assert is_key(text) == all(is_node_name(segment) for segment in text.split("/"))


@pytest.mark.parametrize("length", [MAX_NODE_LENGTH, MAX_NODE_LENGTH + 1])
def test_the_length_of_a_key_is_that_of_its_longest_segment(length):
    assert is_key(f"a/{'b' * length}/c") == (length == MAX_NODE_LENGTH)
