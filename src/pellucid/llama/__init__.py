"""Everything that knows Llama. Its modules can be built from a configuration and combined into other small models."""

from pellucid.family.blocks import RMSNorm as RMSNorm
from pellucid.family.network import Embedding as Embedding
from pellucid.family.rotary import Rotary as Rotary
from pellucid.llama.config import LlamaConfig as LlamaConfig
from pellucid.llama.model import MLP as MLP
from pellucid.llama.model import Attention as Attention
from pellucid.llama.model import Transformer as Transformer
from pellucid.llama.model import TransformerBlock as TransformerBlock
