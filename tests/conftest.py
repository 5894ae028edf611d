"""Fixtures that several test files share."""

import pytest
from forge import Forged, every_kind


@pytest.fixture
def forged() -> Forged:
    """A valid model of a tensor of every kind, as editable documents and payloads."""
    return every_kind()
