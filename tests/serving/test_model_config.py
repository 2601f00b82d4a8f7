from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_repository import TEMPLATES
from serving.errors import CodetrError
from serving.model_config import instance_count, parameter, read_model_config, with_field


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.pbtxt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(TEMPLATES.rglob("*.pbtxt")), ids=lambda path: f"{path.parts[-2]}/{path.name}")
def test_templates_are_read_as_protobuf_reads_them(path: Path) -> None:
    expected = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    config = read_model_config(path)
    assert config.get("max_batch_size", ["0"]) == [str(expected.max_batch_size)]
    assert config.get("backend", [""]) == [expected.backend]
    assert [tensor["name"][0] for tensor in config.get("input", [])] == [tensor.name for tensor in expected.input]
    for tensor, wanted in zip(config["output"], expected.output, strict=True):
        assert [int(dim) for dim in tensor["dims"]] == list(wanted.dims)
    assert instance_count(config) == (sum(group.count or 1 for group in expected.instance_group) or 1)
    for key, value in expected.parameters.items():
        assert parameter(config, key) == value.string_value


def test_other_ways_to_write_the_same_are_read(tmp_path: Path) -> None:
    text = """
    name: 'a # b' ; max_batch_size: 8,  # a comment { with a sign
    input: [ { name: "x" dims: [ 1, -1 ] }, < name: "y\\"\\n" dims: 3 > ]
    parameters: { key: "k" value: { string_value: "v" 'w' } }
    """
    config = read_model_config(written(tmp_path, text))
    assert config["name"] == ["a # b"]
    assert config["max_batch_size"] == ["8"]
    assert config["input"] == [{"name": ["x"], "dims": ["1", "-1"]}, {"name": ['y\\"\\n'], "dims": ["3"]}]
    assert parameter(config, "k") == "v"
    assert parameter(config, "none") is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("input {", id="open"),
        pytest.param("input }", id="closed"),
        pytest.param("a: $", id="sign"),
        pytest.param("a: {b: [1,", id="list"),
        pytest.param('a: "x', id="string"),
        pytest.param("{}", id="no name"),
        pytest.param("a", id="no value"),
    ],
)
def test_what_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(CodetrError, match=r"config.pbtxt cannot be read as a model's configuration: \w+"):
        read_model_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("m { a: 1 }", "m { n: 5 a: 1 }", id="braces"),
        pytest.param("m: < a: 1 >", "m: < n: 5 a: 1 >", id="angles"),
        pytest.param("x { m { a: 1 } } m {}", "x { m { a: 1 } } m { n: 5}", id="of another message"),
        pytest.param("# m {\ns: 'm {' m{}", "# m {\ns: 'm {' m{ n: 5}", id="in a comment and a string"),
        pytest.param("m { n: 3 }", "m { n: 3 }", id="set already"),
        pytest.param("m { a { n: 3 } }", "m { n: 5 a { n: 3 } }", id="set deeper"),
        pytest.param("s: m k { a: 1 }", "s: m k { a: 1 }", id="no such message"),
    ],
)
def test_a_field_is_set_in_a_message(tmp_path: Path, text: str, expected: str) -> None:
    read_model_config(written(tmp_path, text))
    assert with_field(text, "m", "n", 5) == expected
    read_model_config(written(tmp_path, expected))
