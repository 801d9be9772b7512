"""Everything that knows GPT-NeoX. Its modules can be built from a configuration, to combine into other small models."""

from pellucid.family.blocks import LayerNorm as LayerNorm
from pellucid.family.network import Embedding as Embedding
from pellucid.family.rotary import Rotary as Rotary
from pellucid.neox.config import GPTNeoXConfig as GPTNeoXConfig
from pellucid.neox.model import MLP as MLP
from pellucid.neox.model import Attention as Attention
from pellucid.neox.model import Transformer as Transformer
from pellucid.neox.model import TransformerBlock as TransformerBlock
