"""From the file that mmengine's runner saved, with averaged weights and mixed precision, to answers of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_client.client import CoDetrClient
from perf.pictures import encoded_picture
from serving.launch import running_server
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess

HEIGHT, WIDTH = 64, 96
# Of a score; the engine and PyTorch differ by less than a hundredth of it, averaged and trained weights by 60 times it.
TOLERANCE = 1e-4
BEST = 5  # detections whose scores are apart by more than the tolerance, so that their order is sure


@pytest.mark.slow
@pytest.mark.server
def test_a_file_of_the_runner_is_built_and_served(
    mmengine_runs: Path, shallow_config: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    from builder.checkpoint import load_detector
    from builder.pipeline.build import BuildOptions, build_repository
    from builder.pipeline.export import InputSpec
    from builder.variants import from_mmdet_config

    run = mmengine_runs / "ema_amp"
    options = BuildOptions(from_mmdet_config(shallow_config), InputSpec(HEIGHT, WIDTH, 1), run / "epoch_1.pth")
    build_repository(options, tmp_path / "repository")
    picture = encoded_picture(120, 90)
    with running_server(tmp_path / "repository") as server, CoDetrClient(server.grpc_url) as client:
        found = client.detect(picture)
        names = client.class_names()

    with np.load(run / "truth.npz") as file:
        classes = tuple(file["classes"].tolist())
        weights = {
            key.removeprefix("expected/"): torch.from_numpy(file[key]) for key in file if key.startswith("expected/")
        }
    prepared = preprocess(picture, HEIGHT, WIDTH)
    detector = load_detector(shallow_config, weights)
    with torch.inference_mode():
        candidates = detector(torch.from_numpy(prepared.images)[None], torch.tensor([prepared.image_size]))
    boxes, scores, labels = (part[0].numpy() for part in candidates)
    settings = PostprocessSettings(max_detections=len(boxes))
    expected = postprocess(boxes, scores, labels.astype(np.int32), prepared.original_size, settings)
    assert names == classes
    assert len(found) == expected.num_detections > 0
    np.testing.assert_allclose(found.scores, expected.scores[: len(found)], atol=TOLERANCE)
    assert np.diff(expected.scores[: BEST + 1]).max() < -TOLERANCE
    np.testing.assert_allclose(found.boxes[:BEST], expected.boxes[:BEST], atol=0.01)  # pixels
    np.testing.assert_array_equal(found.labels[:BEST], expected.labels[:BEST])
