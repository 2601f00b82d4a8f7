"""Layers of a small detector's program against PyTorch: what is damaged is named, what changed places is not."""

import copy

import numpy as np
import pytest
import torch

from builder.inspect.layers import CARRIED, OWN, compare_layers, match
from builder.inspect.marks import Marks
from builder.inspect.watch import Tap
from builder.pipeline.export import InputSpec, export_detector
from serving.errors import CodetrError
from tests.builder.inspect.small import DEPTHS, HEIGHT, KINDS, WIDTH, damaged, marked_eager, samples, small_detector


@pytest.fixture(scope="module")
def detector():
    return small_detector()


@pytest.fixture(scope="module")
def engine(detector):
    return marked_eager(export_detector(detector, InputSpec(HEIGHT, WIDTH, 1)))


@pytest.fixture(scope="module")
def healthy(detector, engine):
    return compare_layers(detector, engine, samples(), "float32")


def by_name(comparison):
    return {layer.name: layer for layer in comparison.layers}


def test_a_program_agrees_with_the_detector_that_it_was_made_of(healthy):
    assert healthy.first is None
    layers = by_name(healthy)
    assert all(layer.own <= 1e-6 for layer in healthy.layers)
    assert list(layers)[-3:] == ["boxes", "scores", "labels"]
    assert {"proposals.choice", "choice", "decoder.self_attn.out_proj", "class_head"} <= set(layers)
    assert layers["encoder.ffn.2"].parents == ("encoder", "encoder.ffn")
    assert layers["encoder.ffn.2"].kind == "Linear"
    assert healthy.unseen == []


def test_children_come_before_their_parents_and_a_tensor_once(healthy):
    names = list(by_name(healthy))
    assert names.index("backbone.0") < names.index("backbone.1") < names.index("encoder.self_attn.out_proj")
    assert "encoder.ffn" not in names, "its tensor is encoder.ffn.2's"
    assert "backbone" not in names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_damaged_layer_is_named(detector, engine, depth, kind):
    """The engine is whole and the reference damaged, which is the same difference."""
    found = compare_layers(damaged(detector, DEPTHS[depth], kind), engine, samples(), "float32")
    assert found.first.name == DEPTHS[depth]
    assert [layer.name for layer in found.layers if layer.leaves] == [DEPTHS[depth]], "no later layer is blamed"
    assert found.suspects[DEPTHS[depth]][0] == f"{DEPTHS[depth]}.weight"
    after = [layer.name for layer in found.layers].index(DEPTHS[depth])
    assert all(layer.carried < 1e-6 for layer in found.layers[:after])
    assert all(layer.carried > 2e-6 for layer in found.layers[after:-3] if layer.kind != "top-k"), "it is carried on"


def test_weights_that_a_parent_reads_are_suspects_of_the_next_child(detector, engine):
    reference = copy.deepcopy(detector)
    reference.encoder.self_attn.in_proj_weight.mul_(1.01)
    found = compare_layers(reference, engine, samples(), "float32")
    assert found.first.name == "encoder.self_attn.out_proj"
    assert found.first.parents == ("encoder", "encoder.self_attn")
    assert "encoder.self_attn.in_proj_weight" in found.suspects["encoder.self_attn.out_proj"]
    reference = copy.deepcopy(detector)
    reference.queries.weight.mul_(1.01)
    found = compare_layers(reference, engine, samples(), "float32")
    assert found.first.name == "decoder.self_attn.out_proj"
    assert "queries.weight" in found.suspects["decoder.self_attn.out_proj"]


def test_proposals_that_change_places_blame_nobody(detector, engine):
    """Two tokens of equal scores: the engine takes them in another order than PyTorch, and all rows after follow."""
    reference = copy.deepcopy(detector)
    reference.proposals.score.weight.mul_(1e-7)  # all scores are alike
    reference.proposals.score.bias.fill_(1.0)

    def run(images, sizes):
        arrays = dict(engine.run(images, sizes))
        arrays[engine.marks.returned["proposals.score"][0]] = np.ones((1, 32, 1), np.float32)
        return arrays

    found = compare_layers(reference, engine.__class__(engine.marks, run, "", False), samples(), "float32")
    layers = by_name(found)
    assert layers["proposals.choice"].moved > 0
    assert found.first is None
    assert layers["decoder.ffn.2"].own < 1e-6
    assert layers["scores"].carried < 1e-5


def test_proposals_that_are_worse_are_blamed(detector, engine):
    reference = copy.deepcopy(detector)
    reference.proposals.score.weight.neg_()
    reference.proposals.score.bias.neg_()

    def run(images, sizes):
        arrays = dict(engine.run(images, sizes))
        arrays[engine.marks.returned["proposals.score"][0]] *= -1  # the scores are right, the choice is not
        return arrays

    found = compare_layers(reference, engine.__class__(engine.marks, run, "", False), samples(), "float32")
    assert found.first.name == "proposals.choice"
    assert found.first.moved > 0
    assert by_name(found)["decoder.ffn.2"].own < 1e-6, "PyTorch went on with the engine's choice"


@pytest.mark.parametrize("told", [True, False], ids=["places that there are not", "not told"])
def test_rows_after_a_choice_that_is_not_known_are_not_compared(detector, engine, told):
    name = engine.marks.chosen["proposals"][0]

    def run(images, sizes):
        arrays = dict(engine.run(images, sizes))
        arrays[name] = arrays[name] + 1000
        if not told:
            del arrays[name]
        return arrays

    reference = damaged(detector, "decoder.ffn.0", KINDS[0])
    found = compare_layers(reference, engine.__class__(engine.marks, run, "", False), samples(), "float32")
    layers = by_name(found)
    assert layers["encoder.norm2"].comparable
    assert not layers["decoder.ffn.0"].comparable
    assert "proposals.choice" in layers["decoder.ffn.0"].note
    assert (found.first.name if told else found.first) == ("proposals.choice" if told else None)


def test_a_number_that_became_none_is_named(detector, engine):
    def run(images, sizes):
        arrays = dict(engine.run(images, sizes))
        for name in engine.marks.returned["encoder.norm1"]:
            arrays[name][0, 0, 0] = np.nan
        return arrays

    found = compare_layers(detector, engine.__class__(engine.marks, run, "", False), samples(), "float32")
    assert found.first.name == "encoder.norm1"
    assert found.first.not_finite == 2, "one of each sample"


@pytest.mark.parametrize("precision", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_half_types_have_the_tolerance_that_pytorch_itself_needs(detector, precision):
    half = copy.deepcopy(detector).set_precision(getattr(torch, precision))
    engine = marked_eager(export_detector(half, InputSpec(HEIGHT, WIDTH, 1)))
    found = compare_layers(detector, engine, samples(), precision, half)
    assert found.first is None
    assert max(layer.own for layer in found.layers) > OWN["float32"], "it is half precision"
    assert all(layer.own_limit >= OWN[precision] for layer in found.layers)
    assert all(layer.carried_limit >= CARRIED[precision] for layer in found.layers)
    reference = damaged(detector, DEPTHS["encoder"], KINDS[1])
    found = compare_layers(
        reference, engine, samples(), precision, copy.deepcopy(reference).set_precision(half.class_head.weight.dtype)
    )
    assert found.first.name == DEPTHS["encoder"]


def test_an_engine_that_names_no_modules_is_refused(detector, engine):
    nameless = engine.__class__(Marks({}, {}), engine.run, "", False)
    with pytest.raises(CodetrError, match="its nodes carry no names of modules; build it again"):
        compare_layers(detector, nameless, samples(), "float32")


def test_tensors_are_told_apart_by_their_shapes_or_not_at_all():
    taps = [(Tap("a", 0), (1, 2)), (Tap("a", 1), (1, 3)), (Tap("a", 2), (1, 3)), (Tap("b", 0), (1, 2))]
    marks = Marks({"a": ["t2", "t3"], "b": ["t2"]}, {})
    arrays = {"t2": np.zeros((1, 2)), "t3": np.zeros((1, 3))}
    assert match(taps, marks, arrays) == {Tap("a", 0): "t2"}, "of two of one shape the engine has one; t2 is a's"
    marks = Marks({"a": ["t3", "t2", "t4"], "b": []}, {})
    arrays["t4"] = np.zeros((1, 3))
    assert match(taps, marks, arrays) == {Tap("a", 0): "t2", Tap("a", 1): "t3", Tap("a", 2): "t4"}
