"""The demo: a data set the project draws itself and a small Co-DINO trained on it."""
