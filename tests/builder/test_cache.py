from pathlib import Path

from builder.cache import CACHE_VARIABLE, cache_folder


def test_the_systems_folder_for_caches_is_used(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **options: tmp_path / name)
    assert cache_folder() == tmp_path / "codetr"


def test_the_environment_names_another(monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
