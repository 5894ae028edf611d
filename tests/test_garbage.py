"""The garbage collector is as it was before, whatever happens in between."""

import gc

import pytest

from mzstore import garbage


def test_it_is_off_inside_and_on_again_after_an_error():
    with pytest.raises(KeyError), garbage.ignored():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    try:
        with garbage.ignored():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
