"""The grouped classes are registered for every test here."""

import pytest

from gqakit.runtime import register


@pytest.fixture(autouse=True, scope="session")
def _registered():
    register()
