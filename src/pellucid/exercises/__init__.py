"""Build GPT-2 yourself: checks that name the mistake, at which step, and the tensor in which it first shows.

A mistake is named only if making it in the reference reproduces the answer to rounding. A check never raises for a
wrong answer; it returns a `CheckResult`, which prints itself.
"""

from pellucid.exercises.beam_search import check_beam_search
from pellucid.exercises.course import GPTConfig, config_of, starter
from pellucid.exercises.draws import check_sample_basic, check_top_k, check_top_p
from pellucid.exercises.kv_cache import check_cache
from pellucid.exercises.modules import check_attention, check_block, check_gpt2
from pellucid.exercises.pretrained import alignment_for, check_pretrained, load_into
from pellucid.exercises.result import CheckResult
from pellucid.exercises.sampling import check_sample_next_token, check_sampling
from pellucid.exercises.scores import check_frequency_penalty, check_greedy, check_temperature
from pellucid.names.calls import name_arguments

__all__ = [
    "CheckResult",
    "GPTConfig",
    "alignment_for",
    "check_attention",
    "check_beam_search",
    "check_block",
    "check_cache",
    "check_frequency_penalty",
    "check_gpt2",
    "check_greedy",
    "check_pretrained",
    "check_sample_basic",
    "check_sample_next_token",
    "check_sampling",
    "check_temperature",
    "check_top_k",
    "check_top_p",
    "config_of",
    "load_into",
    "starter",
]

name_arguments(globals())
