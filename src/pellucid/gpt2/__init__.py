"""Everything that knows GPT-2. Its modules can be built from a configuration and combined into other small models."""

from pellucid.family.blocks import LayerNorm as LayerNorm
from pellucid.family.network import Embedding as Embedding
from pellucid.gpt2.model import MLP as MLP
from pellucid.gpt2.model import Attention as Attention
from pellucid.gpt2.model import PosEmbedding as PosEmbedding
from pellucid.gpt2.model import Transformer as Transformer
from pellucid.gpt2.model import TransformerBlock as TransformerBlock
