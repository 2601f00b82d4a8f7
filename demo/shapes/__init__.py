"""Drawn shapes as a data set in COCO's format."""

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross", "pentagon", "heart")
