"""Trains the demo detectors on drawn shapes."""
