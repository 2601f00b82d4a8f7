"""The exported graph and its ONNX form against the detector itself."""

import pytest
import torch

from builder import load_detector
from builder.engines import onnx as engine
from builder.pipeline.export import InputSpec, export_detector, uses_operator
from tests import shallow


def inputs(height, width, sizes):
    images = torch.randint(256, (len(sizes), height, width, 3), generator=torch.Generator().manual_seed(1)).byte()
    return images, torch.tensor(sizes, dtype=torch.int32)


CASES = [
    pytest.param(64, 96, False, [(64, 96), (33, 95), (1, 1)], id="padded", marks=pytest.mark.slow),
    pytest.param(101, 139, False, [(101, 139), (70, 20)], id="odd sizes", marks=pytest.mark.slow),
    # Without dilation a padded batch is in engines/tensorrt/test_onnx_8.py, and a built engine in e2e/test_families.py.
    pytest.param(67, 91, True, [(67, 91), (30, 91)], id="DC5 and odd sizes"),
]


@pytest.mark.parametrize(("height", "width", "dilated", "sizes"), CASES)
def test_export_and_onnx_equal_the_detector_at_every_batch(tmp_path, height, width, dilated, sizes):
    reference = shallow.detr(dilated)
    detector, spec = load_detector(*reference), InputSpec(height, width, max_batch_size=3)
    program = export_detector(load_detector(*reference).deploy(), spec)
    assert not uses_operator(program)
    engine.build(program, tmp_path / "model.onnx")
    run = engine.load(tmp_path / "model.onnx", spec, "cpu")
    for batch in (1, len(sizes)):
        images, image_sizes = inputs(height, width, sizes[-batch:])
        expected = detector(images, image_sizes)
        exported = program.module()(images, image_sizes)
        answered = run(images.numpy(), image_sizes.numpy())
        for outputs in (exported, [torch.from_numpy(output) for output in answered]):
            boxes, scores, labels = outputs
            torch.testing.assert_close(scores, expected[1], atol=1e-4, rtol=0)
            torch.testing.assert_close(boxes, expected[0], atol=1e-3, rtol=0)
            assert (labels == expected[2]).float().mean() > 0.95  # equal scores may change places
