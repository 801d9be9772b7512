"""What a `generation_config.json` says, and which of it counts.

transformers honours every field at every call. Here the fields that say which tokens may come and which end a text
always count; those that choose how to sample or search count when they are asked for (`sampler="file"`).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pellucid.errors import ConfigError, shown
from pellucid.family.config import read_token_id, read_tokens
from pellucid.family.json_config import Config
from pellucid.names.calls import named_arguments
from pellucid.weights.manifests import is_there, json_text, read_json

FILE = "generation_config.json"

ALWAYS: dict[str, Any] = {
    "eos_token_id": None, "pad_token_id": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None,
}  # fmt: skip
"""Fields that always count -> transformers' default, which changes nothing."""

SAMPLING: dict[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": None, "min_length": 0,
    "max_new_tokens": None, "max_length": None, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False,
    "num_return_sequences": 1, "stop_strings": None,
}  # fmt: skip
"""Fields that count with `sampler="file"` -> transformers' default."""

UNIMPLEMENTED: dict[str, Any] = {
    "bad_words_ids": None, "sequence_bias": None, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "renormalize_logits": False, "remove_invalid_values": False, "guidance_scale": 1.0, "watermarking_config": None,
    "token_healing": False, "max_time": None, "use_mtp": False, "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None, "penalty_alpha": 0.0, "dola_layers": None, "diversity_penalty": 0.0,
    "num_beam_groups": 1, "constraints": None, "force_words_ids": None,
}  # fmt: skip
"""Fields that would change the tokens and that are not implemented -> the value that changes nothing."""

NEUTRAL = frozenset(
    """
    use_cache cache_implementation cache_config max_cache_len output_attentions output_hidden_states output_scores
    output_logits return_dict_in_generate bos_token_id decoder_start_token_id is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind
    target_lookbehind assistant_ensemble_weight speculation_type compile_config disable_compile
    continuous_batching_config low_memory prefill_chunk_size transformers_version _from_model_config _commit_hash
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Fields that do not change which tokens come, as long as none of those above asks for another way of decoding."""


@named_arguments()
@dataclass(frozen=True)
class GenerationSettings:
    """The fields of a `generation_config.json`; without the file, those of them that the configuration has.

    Args:
        fields: As the file has them, under transformers' names.
        source: Where they come from.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> model.generation = pl.GenerationSettings({"eos_token_id": [0, 12], "do_sample": True, "top_p": 0.9})
        >>> model.generation.end_ids, model.generation.sampling
        ((0, 12), {'do_sample': True, 'top_p': 0.9})
    """

    fields: Mapping[str, Any]
    source: str = field(default=FILE, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.fields, Mapping) or not all(isinstance(name, str) for name in self.fields):
            raise ConfigError(
                f"GenerationSettings: {shown(self.fields)} given, expected a mapping of names to values.",
                code="generation-wrong-type",
                remedy="Give a dict with transformers' names, such as {'eos_token_id': 0}.",
            )
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in self.fields.items()}
        object.__setattr__(self, "fields", MappingProxyType(plain))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self.fields), self.source))

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationSettings | None:
        """Read a folder's `generation_config.json`; None if there is none."""
        path = folder / FILE
        return cls(read_json(path, ConfigError, "generation-not-json")) if is_there(path) else None

    @classmethod
    def of_config(cls, config: Config) -> GenerationSettings:
        """What transformers takes from `config.json` if there is no `generation_config.json`."""
        old = {name: config.neutral[name] for name in config.neutral if name in _KNOWN - NEUTRAL}
        ends = list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id
        ids = {"eos_token_id": ends, "pad_token_id": config.pad_token_id}
        return cls({**old, **{name: value for name, value in ids.items() if value is not None}}, "the config")

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return self.ids("eos_token_id")

    @property
    def pad_id(self) -> int | None:
        """What stands behind the end of a text that is shorter than others."""
        with self._told_of():
            return read_token_id("pad_token_id", self.fields.get("pad_token_id"))

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields that count with `sampler="file"` only, if they differ from transformers' default."""
        return self._changed(SAMPLING)

    @property
    def unimplemented(self) -> dict[str, Any]:
        """The fields that would change the tokens and that are not implemented."""
        return self._changed(UNIMPLEMENTED)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The fields, sorted, that transformers' `generate` does not read either."""
        return tuple(sorted(set(self.fields) - _KNOWN - NEUTRAL))

    def ids(self, name: str) -> tuple[int, ...]:
        """The token ids in a field: none, one or several."""
        value = self.fields.get(name)
        several = value if isinstance(value, (list, tuple)) else [value]
        with self._told_of():
            return read_tokens(name, several)

    @contextmanager
    def _told_of(self) -> Generator[None]:
        """Errors of ids say in which file they are."""
        try:
            yield
        except ConfigError as problem:
            said = problem.message.replace("config:", f"{self.source}:", 1)
            raise ConfigError(said, code=problem.code, remedy=problem.remedy) from None

    def without(self, *names: str) -> GenerationSettings:
        """These settings without some of the fields."""
        return type(self)({name: self.fields[name] for name in self.fields if name not in names}, self.source)

    def to_json(self) -> str:
        """The text of a `generation_config.json`."""
        return json_text(self.fields)

    def summary(self) -> str:
        """What counts and what does not, in one line."""
        parts = {
            "always counts": self._changed(ALWAYS),
            'counts with sampler="file" only': self.sampling,
            "not implemented": self.unimplemented,
            "read by nobody": self.unknown,
        }
        said = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in parts.items() if names)
        return f"{self.source}: {said or 'nothing that changes the tokens'}"

    def _changed(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: self.fields[name] for name in defaults if self.fields.get(name) is not None}
        return {name: value for name, value in given.items() if value != defaults[name]}


_KNOWN = frozenset({*ALWAYS, *SAMPLING, *UNIMPLEMENTED})
