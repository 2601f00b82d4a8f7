"""Programs to read and copy; a test runs each of them."""
