"""Sparse autoencoders of others in a run of this model: features as named values, edits, attribution, quality.

An autoencoder writes a value as a sum of few features out of many, and an error: x = decode(f) + error (Cunningham et
al. 2023, arXiv:2309.08600; Bricken et al. 2023, "Towards monosemanticity"). Edits of features leave the error there.
"""

from pellucid.names.calls import name_arguments
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.feature_effects import ablate, direct, patch
from pellucid.sae.quality import evaluate
from pellucid.sae.sae_config import SaeConfig
from pellucid.sae.sae_files import load

__all__ = ["SaeConfig", "SparseAutoencoder", "ablate", "direct", "evaluate", "load", "patch"]

name_arguments(globals())
