"""Lenses: what the model would say if it stopped at a block, read from the residual stream there.

The logit lens applies the last norm and the head to an earlier stream (nostalgebraist 2020, "interpreting GPT: the
logit lens"); the tuned lens first takes it through an affine map that was trained for its block (Belrose et al. 2023,
arXiv:2303.08112).
"""

from typing import TYPE_CHECKING

from pellucid.lens.readout import Readout, logit
from pellucid.lens.tuned import TunedLens
from pellucid.names.attributes import said_of
from pellucid.names.calls import LENS, name_arguments

__all__ = ["Readout", "TunedLens", "logit"]

name_arguments(globals())
if not TYPE_CHECKING:
    __getattr__ = said_of(__name__, LENS)
