"""What runs inside the server, as plain functions on NumPy, OpenCV and Pillow: contract, pre- and post-processing."""
