"""Change a run and see what it does: patching sweeps, ablation, paths."""

from typing import TYPE_CHECKING

from pellucid.names.attributes import said_of
from pellucid.names.calls import PATCHING, name_arguments
from pellucid.patching.ablation import ablate as ablate
from pellucid.patching.baselines import ablation_baseline as ablation_baseline
from pellucid.patching.baselines import baseline as baseline
from pellucid.patching.baselines import path_baseline as path_baseline
from pellucid.patching.paths import path as path
from pellucid.patching.roles import Roles as Roles
from pellucid.patching.roles import align as align
from pellucid.patching.sweeps import SweepCost as SweepCost
from pellucid.patching.sweeps import effect_sizes as effect_sizes
from pellucid.patching.sweeps import estimate_sweep as estimate_sweep
from pellucid.patching.sweeps import normalized as normalized
from pellucid.patching.sweeps import sweep as sweep

name_arguments(globals())
if not TYPE_CHECKING:
    __getattr__ = said_of(__name__, PATCHING)
