import numpy as np
import pytest

from tests.builder.detr.golden import CASES, Case, Golden


@pytest.fixture(scope="session")
def detr(data_dir):
    """The reference data of DETR."""
    with np.load(data_dir / "golden_detr_tiny.npz") as file:
        return Golden(dict(file))


@pytest.fixture(params=CASES)
def case(detr, request):
    return Case(detr, request.param)
