"""Kernels of our own for decoding with `numerics="fast"`, compiled for the processor when they are first used."""
