"""Deformable attention's latency and error."""
