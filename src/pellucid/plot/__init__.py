"""Figures of what was measured: each is a function that takes `ax=` and returns the axes, with the numbers behind it.

Figures are as wide as a journal's column and readable there, light or dark (`theme`), in colours that colour-blind
readers tell apart; `data(ax)` gives the numbers behind one. They need matplotlib (`pip install 'pellucid[stats]'`),
which is imported when the first is drawn.
"""

from pellucid.names.calls import name_arguments
from pellucid.plot.along_text import examples, neuron, tokens
from pellucid.plot.canvas import data
from pellucid.plot.circuit_graph import circuit
from pellucid.plot.layers import norm_histograms, norms, ridges
from pellucid.plot.logits import attribution, lens
from pellucid.plot.matrix import head_scores, heatmap
from pellucid.plot.patterns import attention, attention_grid
from pellucid.plot.residual_stream import normalization, residual_growth
from pellucid.plot.sampler_stages import next_tokens
from pellucid.plot.summaries import autoregression, densities, parameters
from pellucid.plot.themes import theme
from pellucid.plot.vectors import scatter

__all__ = [
    "attention",
    "attention_grid",
    "attribution",
    "autoregression",
    "circuit",
    "data",
    "densities",
    "examples",
    "head_scores",
    "heatmap",
    "lens",
    "neuron",
    "next_tokens",
    "norm_histograms",
    "normalization",
    "norms",
    "parameters",
    "residual_growth",
    "ridges",
    "scatter",
    "theme",
    "tokens",
]

name_arguments(globals())
