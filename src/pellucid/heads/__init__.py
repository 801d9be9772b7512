"""Heads: what their weights say, and what they do on a text.

A head reads the residual stream through two matrices of rank d_head: W_QK = W_Q W_K^T says where it attends, and W_OV =
W_V W_O what it moves (Elhage et al. 2021, "A mathematical framework for transformer circuits"). `ov` and `qk` give them
as factors, `composition` says how much heads read of what earlier ones write, `weight_scores` whether they copy or look
back by one; `scores` and `name_movers` say to which tokens of a text heads attend and what they copy.
"""

from typing import TYPE_CHECKING

from pellucid.heads.detectors import name_movers, scores
from pellucid.heads.factored import FactoredMatrix
from pellucid.heads.matrices import composition, ov, qk, weight_scores
from pellucid.names.attributes import said_of
from pellucid.names.calls import HEADS, name_arguments

__all__ = ["FactoredMatrix", "composition", "name_movers", "ov", "qk", "scores", "weight_scores"]

name_arguments(globals())
if not TYPE_CHECKING:
    __getattr__ = said_of(__name__, HEADS)
