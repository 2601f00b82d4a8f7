"""Three layers, for the golden network has two: its second layer is its last, and its first the one before."""

from dataclasses import replace

import pytest
import torch

from builder import random_detector
from builder.parts.boxes import inverse_sigmoid
from tests.smallest import SMALLEST


@pytest.fixture(scope="module")
def detector():
    return random_detector(replace(SMALLEST, decoder_layers=3))


@pytest.fixture(scope="module")
def memory(detector):
    generator = torch.Generator().manual_seed(0)
    return detector.encode(torch.randn(2, 3, 64, 96, generator=generator), torch.tensor([[64, 96], [40, 50]]).int())


def refined(head, hidden, references):
    return torch.sigmoid(head(hidden) + inverse_sigmoid(references))


def test_each_layer_gets_the_boxes_that_the_layer_before_refined(detector, memory):
    decoder, references = detector.decoder, detector.proposals(*memory).boxes
    decoded = decoder(detector.query_embed.weight.expand(2, -1, -1), references, *memory)
    assert (len(decoded.hidden), len(decoded.references)) == (3, 3)
    assert torch.equal(decoded.references[0], references)
    for i in (0, 1):
        expected = refined(decoder.box_heads[i], decoded.hidden[i], decoded.references[i])
        torch.testing.assert_close(decoded.references[i + 1], expected)


def test_predictions_come_from_the_last_layer(detector, memory):
    decoder, references = detector.decoder, detector.proposals(*memory).boxes
    decoded = decoder(detector.query_embed.weight.expand(2, -1, -1), references, *memory)
    normed = decoder.norm(decoded.hidden[2])
    logits, boxes = detector.decode(memory, references)
    torch.testing.assert_close(logits, detector.class_head(normed))
    torch.testing.assert_close(boxes, refined(decoder.box_heads[2], normed, decoded.references[2]))
