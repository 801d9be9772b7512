"""The public names, each with its home; `__init__.py` reads this list and imports a name at its first use."""

from pellucid import attribution as attribution
from pellucid import circuits as circuits
from pellucid import corpus as corpus
from pellucid import exercises as exercises
from pellucid import heads as heads
from pellucid import lens as lens
from pellucid import measure as measure
from pellucid import metrics as metrics
from pellucid import patching as patching
from pellucid import plot as plot
from pellucid import reproduce as reproduce
from pellucid import sae as sae
from pellucid.errors import (
    ConfigError as ConfigError,
)
from pellucid.errors import (
    EditError as EditError,
)
from pellucid.errors import (
    InputError as InputError,
)
from pellucid.errors import (
    MissingExtraError as MissingExtraError,
)
from pellucid.errors import (
    NotFoundError as NotFoundError,
)
from pellucid.errors import (
    NumericsError as NumericsError,
)
from pellucid.errors import (
    PellucidError as PellucidError,
)
from pellucid.errors import (
    PellucidWarning as PellucidWarning,
)
from pellucid.errors import (
    ShapeError as ShapeError,
)
from pellucid.errors import (
    UnknownArgumentError as UnknownArgumentError,
)
from pellucid.errors import (
    UnknownAttributeError as UnknownAttributeError,
)
from pellucid.errors import (
    UnknownNameError as UnknownNameError,
)
from pellucid.errors import (
    WeightsError as WeightsError,
)
from pellucid.folding import Folded as Folded
from pellucid.folding import fold as fold
from pellucid.generate import stages as stages
from pellucid.generate.generation import Generation as Generation
from pellucid.generate.generation import Token as Token
from pellucid.generate.sampler import Sampler as Sampler
from pellucid.generation_settings import GenerationSettings as GenerationSettings
from pellucid.gpt2.config import TransformerConfig as TransformerConfig
from pellucid.html.page import save_html as save_html
from pellucid.llama.config import LlamaConfig as LlamaConfig
from pellucid.neox.config import GPTNeoXConfig as GPTNeoXConfig
from pellucid.open import from_hf as from_hf
from pellucid.open import load as load
from pellucid.open import to_hf as to_hf
from pellucid.prove.alignment import Alignment as Alignment
from pellucid.prove.compare import compare as compare
from pellucid.prove.report import ComparisonReport as ComparisonReport
from pellucid.prove.tensors import TensorComparison as TensorComparison
from pellucid.run.activations import ActivationCkpts as ActivationCkpts
from pellucid.run.cache import KeyValueCache as KeyValueCache
from pellucid.run.cost import Estimate as Estimate
from pellucid.run.cost import GenerationMemory as GenerationMemory
from pellucid.run.cost import ParameterCount as ParameterCount
from pellucid.run.cost import count_parameters as count_parameters
from pellucid.run.cost import estimate as estimate
from pellucid.run.cost import estimate_generation as estimate_generation
from pellucid.run.edit import Edit as Edit
from pellucid.run.model import CkptedTransformer as CkptedTransformer
from pellucid.tap import Tap as Tap
from pellucid.text.batch import Batch as Batch
from pellucid.text.tokenizer import Tokenizer as Tokenizer
from pellucid.ties import (
    TieAudit as TieAudit,
)
from pellucid.ties import (
    audit_ties as audit_ties,
)
from pellucid.ties import (
    replace_head as replace_head,
)
from pellucid.ties import (
    save_hf as save_hf,
)
from pellucid.ties import (
    tie as tie,
)
from pellucid.ties import (
    untie as untie,
)
from pellucid.viewer.serving import serve as serve
from pellucid.viewer.views import save_view as save_view
from pellucid.viewer.views import view as view
from pellucid.weights.hub import HubOptions as HubOptions

__version__: str
__all__: list[str]
