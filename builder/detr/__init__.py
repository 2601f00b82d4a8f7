"""The DETR network, as facebookresearch/detr defines it."""
