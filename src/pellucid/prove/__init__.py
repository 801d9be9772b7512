"""Proof instead of tolerance: what two tensors or two models share, and where they first differ."""
