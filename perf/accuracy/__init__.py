"""COCO accuracy of a running server, of the PyTorch detector or of an engine, on any COCO annotation file."""
