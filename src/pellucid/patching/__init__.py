"""Change a run and see what it does: patching sweeps, ablation, paths."""

from pellucid.dialects import name_arguments
from pellucid.patching.ablation import ablate as ablate
from pellucid.patching.effects import baseline as baseline
from pellucid.patching.effects import effect_sizes as effect_sizes
from pellucid.patching.effects import normalized as normalized
from pellucid.patching.paths import path as path
from pellucid.patching.roles import Roles as Roles
from pellucid.patching.roles import align as align
from pellucid.patching.sweeps import SweepCost as SweepCost
from pellucid.patching.sweeps import estimate_sweep as estimate_sweep
from pellucid.patching.sweeps import sweep as sweep

name_arguments(globals())
