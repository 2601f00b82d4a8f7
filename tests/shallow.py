"""The detectors of the reference data with one layer or block of each kind, which are exported faster.

Co-DINO's are the fixtures `shallow_config` and `shallow_weights`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import torch

from tests.conftest import DATA

_DEEPER = {
    "detr": r"coder\.layers\.1\.",
    "rtdetrv2": (
        r"decoder\.decoder\.layers\.[12]\.|dec_(score|bbox)_head\.[12]\.|"
        r"res_layers\.[123]\.blocks\.1\.|bottlenecks\.[12]\."
    ),
}


def _shallow(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a family's reference data, still deep, and the weights that shallow ones need."""
    with np.load(DATA / f"golden_{family}_tiny.npz") as golden:
        config = json.loads(bytes(golden["config_json"]).decode())
        kept = [key for key in golden if key.startswith("sd/") and not re.search(_DEEPER[family], key)]
        return config, {key[3:]: torch.from_numpy(golden[key]) for key in kept}


def detr(dilated: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and weights of a DETR, with or without a dilated last stage."""
    config, weights = _shallow("detr")
    config |= {"enc_layers": 1, "dec_layers": 1}
    config["backbone"]["dilation_c5"] = dilated
    return config, weights


def rtdetrv2(sampling: str = "default") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and weights of an RT-DETRv2 of a way to sample."""
    config, weights = _shallow("rtdetrv2")
    config["PResNet"]["blocks"] = [2, 1, 1, 1]
    config["HybridEncoder"]["depth_mult"] = 1 / 3  # of three blocks
    config["RTDETRTransformerv2"].update(num_layers=1, cross_attn_method=sampling)
    return config, weights
