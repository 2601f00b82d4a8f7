from __future__ import annotations

from perf.load.config import LoadConfig, from_environment
from perf.load.shapes import Profile

CONFIG = LoadConfig("h:1", "http", arrival="constant-rate", shape="spike", peak=7, seconds=30, max_p99_ms=80.0)


def test_settings_survive_the_way_to_locusts_process() -> None:
    environment = CONFIG.environment()
    assert from_environment(environment) == CONFIG
    assert "PATH" in environment


def test_the_profile_is_the_settings() -> None:
    assert CONFIG.profile == Profile("spike", 7)


def test_a_run_ends_by_its_requests_if_given_else_by_its_time() -> None:
    assert CONFIG.progress(15, 400) == 0.5
    assert LoadConfig("h:1", seconds=30, requests=1000).progress(15, 400) == 0.4
