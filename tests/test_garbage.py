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
