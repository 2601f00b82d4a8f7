"""Reads what users bring: checkpoints and configs, without running anything that lies in them."""
