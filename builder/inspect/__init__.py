"""Looks into engines: which layer leaves PyTorch first (`compare`), and what an engine is made of (`describe`)."""
