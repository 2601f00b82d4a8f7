"""What the server costs around the detector: measured with an engine whose own cost is fixed and known."""
