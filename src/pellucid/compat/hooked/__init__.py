"""HookedTransformer's interface over a model; `docs/coming_from_hookedtransformer.md` says what differs."""

from pellucid.compat.hooked import patching as patching
from pellucid.compat.hooked import utils as utils
from pellucid.compat.hooked.activation_cache import ActivationCache as ActivationCache
from pellucid.compat.hooked.hook_tap import HookPoint as HookPoint
from pellucid.compat.hooked.hooked_factored import FactoredMatrix as FactoredMatrix
from pellucid.compat.hooked.hooked_root import HookedRootModule as HookedRootModule
from pellucid.compat.hooked.settings import HookedTransformerConfig as HookedTransformerConfig
from pellucid.compat.hooked.transformer import HookedTransformer as HookedTransformer
