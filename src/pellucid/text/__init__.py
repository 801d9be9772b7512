"""Texts to ids and back; ids, mask and positions together."""
