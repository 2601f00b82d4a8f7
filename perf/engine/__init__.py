"""The detector's latency, by variant and engine."""
