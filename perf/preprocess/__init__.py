"""What decoding and resizing cost."""
