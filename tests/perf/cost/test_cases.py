from __future__ import annotations

from dataclasses import fields, replace

import pytest

from perf.cost.cases import Case, CostPlan, cases, groups, middle


def test_one_setting_is_varied_at_a_time() -> None:
    plan = CostPlan()
    base = Case(1152, 768)
    for case in cases(plan):
        changed = {field.name for field in fields(Case) if getattr(case, field.name) != getattr(base, field.name)}
        if "guests" in changed:  # what they bring is to be seen where batches do not grow instead
            changed.remove("dynamic_batching")
        assert len(changed - {"width", "height", "batch"}) <= 1, case.name
        assert not (changed & {"width", "height", "batch"} and changed - {"width", "height", "batch"}), case.name


def test_every_case_is_measured_once_and_has_a_name_of_its_own() -> None:
    plan = CostPlan()
    measured = cases(plan)
    assert len({case.name for case in measured}) == len(measured)
    assert {case for group in groups(plan).values() for case in group.values()} == set(measured)


def test_the_plan_decides_what_is_varied() -> None:
    named = groups(CostPlan(sizes=((64, 32),), batches=(3,), preprocess=(5,)))
    assert list(named["Input size and images in a request"]) == ["64x32, 3"]
    assert named["Instances of codetr_preprocess"] == {"5": replace(Case(64, 32), preprocess=5)}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([(9, 9), (1, 1), (2, 2)], (2, 2), id="by pixels, not by place"),
        pytest.param([(1, 1), (2, 2)], (2, 2), id="the larger of two"),
    ],
)
def test_middle(sizes: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert middle(sizes) == expected
