"""Kernels of our own for decoding with fast numerics, compiled for the processor when they are first used."""
