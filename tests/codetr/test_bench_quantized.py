from typer.testing import CliRunner

import perf.accuracy.quantised
from builder.quantise.recipe import Recipe
from codetr import cli
from perf.accuracy.quantised import naive
from serving.errors import CodetrError


def test_each_set_of_words_is_a_recipe_of_its_own(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(perf.accuracy.quantised, "measure", lambda *arguments: seen.extend(arguments))
    options = ["--quantize", "neck, backbone-convs", "--quantize", "encoder-ffn", "--method", "max"]
    command = ["bench", "quantized", "rtdetrv2_demo", "--output", str(tmp_path), "--images", "5", *options]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    variant, weights, engine, images, recipes, output = seen[:6]
    assert (variant.name, weights.name, engine) == ("rtdetrv2_demo", "rtdetrv2_demo_fp16.safetensors", "onnx")
    assert (images, output) == (5, tmp_path)
    assert recipes == [naive(), Recipe(("neck", "backbone-convs"), "max"), Recipe(("encoder-ffn",), "max")]


def test_fp8_of_the_torch_engine_has_no_case_of_every_layer(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(perf.accuracy.quantised, "measure", lambda *arguments: seen.extend(arguments))
    command = ["bench", "quantized", "co_dino_demo", "--engine", "torch", "--output", str(tmp_path)]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert seen[4] == [Recipe()]


def test_a_variant_without_shipped_weights_needs_some(tmp_path):
    result = CliRunner().invoke(cli.app, ["bench", "quantized", "detr_r50", "--output", str(tmp_path)])
    assert isinstance(result.exception, CodetrError)
    assert "the variant detr_r50 needs --weights, its checkpoint, or --random-weights" in str(result.exception)


def test_random_weights_and_another_size_measure_what_has_no_checkpoint(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(perf.accuracy.quantised, "measure", lambda *arguments: seen.extend(arguments))
    words = ["bench", "quantized", "detr_r50", "--random-weights", "--width", "448", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert (seen[1], seen[-1]) == (None, (1344, 448))
    result = CliRunner().invoke(cli.app, [*words, "--weights", "some.pth"])
    assert "give either --weights FILE or --random-weights" in str(result.exception)
