"""Fixtures of the core's tests."""

import pytest

from gqakit.core.rope import Channels


@pytest.fixture
def core_rotary() -> Channels:
    """A fully rotary head of six channels."""
    return Channels.rotary(6)
