"""The Co-DINO network, as mmdetection's `projects/CO-DETR` defines it."""
