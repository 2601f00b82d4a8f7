"""Quantisation: which layers, their ranges on pictures, the layers that take their place, and the search for a set."""
