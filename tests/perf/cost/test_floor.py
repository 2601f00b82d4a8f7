from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from perf.cost.cases import Case
from perf.cost.floor import MODEL, write_floor
from perf.cost.repository import edit_config, write_cost_repository
from serving.repository import check_repository


def config(repository: Path, model: str) -> Any:
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_only_what_the_steps_do_is_another(tmp_path: Path) -> None:
    source = write_cost_repository(tmp_path / "source", Case(96, 64, preprocess=3, guests=1), 1)
    empty = write_floor(source, "codetr", tmp_path / "empty", {"codetr_detector": 11.5})
    check_repository(empty)
    assert config(empty, "codetr") == config(source, "codetr")
    for step, wait in (("preprocess", "0"), ("detector", "11.5"), ("postprocess", "0")):
        found, wanted = config(empty, f"codetr_{step}"), config(source, f"codetr_{step}")
        assert found.parameters["wait_ms"].string_value == wait
        del found.parameters["wait_ms"]
        wanted.ClearField("model_warmup")
        assert found == wanted
        assert [path.name for path in (empty / f"codetr_{step}/1").iterdir()] == ["model.py"]
        assert (empty / f"codetr_{step}/1/model.py").read_bytes() == MODEL.read_bytes()


def test_a_plan_becomes_a_step_of_python(tmp_path: Path) -> None:
    def as_plan(config: Any) -> None:
        config.platform, config.backend = "tensorrt_plan", ""
        config.optimization.cuda.graphs = True

    source = write_cost_repository(tmp_path / "source", Case(96, 64), 1)
    edit_config(source, "codetr_detector", as_plan)
    detector = config(write_floor(source, "codetr", tmp_path / "empty", {}), "codetr_detector")
    assert (detector.backend, detector.platform, detector.HasField("optimization")) == ("python", "", False)
