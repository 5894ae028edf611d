"""The garbage collector is as it was before, whatever happens in between."""

import gc

import pytest

from mzstore import garbage


def test_it_is_off_inside_and_on_again_after_an_error():
    @garbage.ignored()
    def fail():
        assert not gc.isenabled()
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    try:
        with garbage.ignored():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_made_inside_counts_as_old():
    with garbage.ignored():
        made = [[] for _ in range(100_000)]
    assert any(each is made for each in gc.get_objects(generation=2))


def test_what_somebody_has_frozen_stays_frozen():
    marker = [object]
    gc.freeze()
    try:
        with garbage.ignored():
            pass
        assert all(each is not marker for each in gc.get_objects())  # which has none that are frozen
    finally:
        gc.unfreeze()
