"""Templates of the models that tritonserver loads, and what runs an engine beside them."""

from pathlib import Path

TEMPLATES = Path(__file__).parent
