"""Figures of what was measured: each is a function that takes `ax=` and returns the axes, with the numbers behind it.

Figures are as wide as a journal's column and readable there, light or dark (`theme`), in colours that colour-blind
readers tell apart; `data(ax)` gives the numbers behind one. They need matplotlib (`pip install 'pellucid[stats]'`),
which is imported when the first is drawn.
"""

from pellucid.plot.all_heads import attention_grid
from pellucid.plot.breakdown import parameters
from pellucid.plot.canvas import data
from pellucid.plot.coefficients import autoregression
from pellucid.plot.distributions import norm_histograms, ridges
from pellucid.plot.growth import residual_growth
from pellucid.plot.one_head import attention
from pellucid.plot.points import norms
from pellucid.plot.scores import head_scores
from pellucid.plot.themes import theme

__all__ = [
    "attention",
    "attention_grid",
    "autoregression",
    "data",
    "head_scores",
    "norm_histograms",
    "norms",
    "parameters",
    "residual_growth",
    "ridges",
    "theme",
]
