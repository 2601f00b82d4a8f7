from __future__ import annotations

import pytest

from perf.cluster.monitoring import desired_replicas


@pytest.mark.parametrize(
    ("current", "mean", "expected"),
    [
        pytest.param(3, 2.0, 6, id="twice the target, twice as many"),
        pytest.param(3, 1.05, 3, id="within the tolerance nothing changes"),
        pytest.param(3, 1.2, 4, id="upwards a part of one is one"),
        pytest.param(4, 0.5, 2, id="half"),
        pytest.param(4, 0.0, 0, id="idle; the HorizontalPodAutoscaler has a lower limit"),
    ],
)
def test_as_kubernetes_computes_it(current: int, mean: float, expected: int) -> None:
    assert desired_replicas(current, mean, 1.0) == expected
