"""Weights: where they come from, how each layout names them, and how they are written back."""
