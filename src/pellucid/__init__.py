"""pellucid: GPT-2 made of glass. Every intermediate value has a name, and looking never changes the answer."""

from pellucid._version import __version__
from pellucid.batch import Batch
from pellucid.config import TransformerConfig
from pellucid.counting import ParameterCount, count_parameters
from pellucid.errors import (
    ConfigError,
    EditError,
    InputError,
    MissingExtraError,
    NotFoundError,
    PellucidError,
    PellucidWarning,
    ShapeError,
    UnknownNameError,
    WeightsError,
)
from pellucid.estimate import Estimate, estimate
from pellucid.model import CkptedTransformer
from pellucid.open import from_hf, load, to_hf
from pellucid.prove.alignment import Alignment
from pellucid.prove.compare import compare
from pellucid.prove.report import ComparisonReport
from pellucid.prove.tensors import TensorComparison
from pellucid.report.page import save_html
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.tap import Tap
from pellucid.tokens import Tokenizer
from pellucid.weights.hub import HubOptions

__all__ = [
    "ActivationCkpts",
    "Alignment",
    "Batch",
    "CkptedTransformer",
    "ComparisonReport",
    "ConfigError",
    "Edit",
    "EditError",
    "Estimate",
    "HubOptions",
    "InputError",
    "MissingExtraError",
    "NotFoundError",
    "ParameterCount",
    "PellucidError",
    "PellucidWarning",
    "ShapeError",
    "Tap",
    "TensorComparison",
    "Tokenizer",
    "TransformerConfig",
    "UnknownNameError",
    "WeightsError",
    "__version__",
    "compare",
    "count_parameters",
    "estimate",
    "from_hf",
    "load",
    "save_html",
    "to_hf",
]
