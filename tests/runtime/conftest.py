"""The grouped classes are registered for every test here."""

import pytest
import torch

from gqakit.models.registration import register


@pytest.fixture(autouse=True, scope="session")
def _registered():
    register()
    # The models are tiny: threads of several test runs on one machine only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
