"""The rules of rotary positions (`rope_type`): how fast each pair of a head's entries turns, and what a configuration
says of it. Each rule computes in float32, in the order that transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.errors import ConfigError, nearest, shown
from pellucid.family.config import read_number, wrong_type


class Rule(NamedTuple):
    """What a head and the text's length mean to a rope type."""

    parameters: Mapping[str, Any]  # `rope_parameters` of the configuration
    width: int  # how many entries of a head are turned, counted from the first
    n_ctx: int  # longest text

    @property
    def turned(self) -> int:
        """How many entries turn: the last pair is a whole one if the width is odd."""
        return self.width + self.width % 2


Frequencies = tuple[Tensor, float]
"""Radians per position of each pair [K / 2], and what cosines and sines are multiplied by."""


def _default(rule: Rule) -> Frequencies:
    return 1.0 / (rule.parameters["rope_theta"] ** _exponents(rule)), 1.0


def _linear(rule: Rule) -> Frequencies:
    """Positions closer together by a factor (Chen et al. 2023, arXiv:2306.15595)."""
    return _default(rule)[0] / rule.parameters["factor"], 1.0


def _dynamic(rule: Rule) -> Frequencies:
    """A base that grows with texts beyond the context; within it, as here, the plain one."""
    factor, dim = rule.parameters["factor"], rule.width
    grown = (factor * rule.n_ctx / rule.n_ctx) - (factor - 1)
    base = rule.parameters["rope_theta"] * grown ** (dim / (dim - 2))
    return 1.0 / (base ** _exponents(rule)), 1.0


def _llama3(rule: Rule) -> Frequencies:
    """Slow pairs slower by a factor, fast ones as they are, a ramp between (Grattafiori et al. 2024)."""
    given, (inv_freq, _) = rule.parameters, _default(rule)
    factor, context = given["factor"], given["original_max_position_embeddings"]
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    wavelength = 2 * math.pi / inv_freq
    slowed = torch.where(wavelength > context / low, inv_freq / factor, inv_freq)
    smooth = (context / wavelength - low) / (high - low)
    between = (1 - smooth) * slowed / factor + smooth * slowed
    is_between = ~(wavelength < context / high) * ~(wavelength > context / low)
    return torch.where(is_between, between, slowed), 1.0


def _yarn(rule: Rule) -> Frequencies:
    """Pairs slower by a factor, or not, by how often they turn within the context (Peng et al. 2023, 2309.00071)."""
    given, dim, base = rule.parameters, rule.width, rule.parameters["rope_theta"]
    context = given["original_max_position_embeddings"]
    factor = rule.n_ctx / context if given["factor"] is None else given["factor"]

    def pair_that_turns(times: float) -> float:
        return (dim * math.log(context / (times * 2 * math.pi))) / (2 * math.log(base))

    low = pair_that_turns(given.get("beta_fast") or 32)
    high = pair_that_turns(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high + 0.001 - low if low == high else high - low)
    kept = 1 - torch.clamp(ramp, 0, 1)
    powers = base ** _exponents(rule)
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept, _yarn_scaling(given, factor)


def _yarn_scaling(given: Mapping[str, Any], factor: float) -> float:
    def scale(weight: float = 1) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    mscale, everywhere = given.get("mscale"), given.get("mscale_all_dim")
    return float(scale(mscale) / scale(everywhere)) if mscale and everywhere else scale()


def _exponents(rule: Rule) -> Tensor:
    return torch.arange(0, rule.width, 2, dtype=torch.int64).float() / rule.width


RULES: dict[str, Callable[[Rule], Frequencies]] = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn,
}  # fmt: skip
"""Every `rope_type` that is implemented."""

NEEDED: dict[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
"""What each of them needs beside its base."""


def gathered(given: dict[str, Any], said: Mapping[str, str], **defaults: Any) -> dict[str, Any]:
    """Fields of a configuration with `rope_parameters` in one, by transformers' rules of what counts first.

    `said` are fields beside it that say one of its parts -> that part; `defaults` are parts that are there in any case.
    """
    beside = {name: given.pop(name) for name in (_SCALING, _CONTEXT, *said) if name in given}
    parameters: Any = beside.get(_SCALING) or given.get("rope_parameters") or {}
    parts = {part: beside[name] for name, part in said.items() if beside.get(name) is not None}
    given["rope_parameters"] = {**defaults, **parts, **_mapping(parameters)}
    if _CONTEXT in beside:
        given["rope_parameters"][_CONTEXT] = beside[_CONTEXT]
    return given


def _mapping(parameters: object) -> Mapping[str, Any]:
    if not isinstance(parameters, Mapping):
        raise wrong_type("rope_parameters", parameters, "a mapping")
    return parameters


def stated(given: Mapping[str, Any], own: Mapping[str, Any], said: Mapping[str, str]) -> Mapping[str, Any]:
    """Fields that replace some of a configuration's own, with what they say of rotary positions as `rope_parameters`.

    What they do not say of rotary positions is its own; `said` is as in `gathered`.
    """
    words = {name: value for name, value in given.items() if name in {*said, _SCALING}}
    if not words:
        return given
    kept = gathered(dict(own), said)["rope_parameters"]
    if _SCALING in words:
        kept = {part: kept[part] for part in said.values() if part in kept}
    rest = {name: value for name, value in given.items() if name not in words}
    changed = gathered(words, said)["rope_parameters"]
    return {**rest, "rope_parameters": {**kept, **changed, **_mapping(rest.get("rope_parameters", {}))}}


def checked(parameters: object, n_ctx: int, **defaults: Any) -> dict[str, Any]:
    """`rope_parameters` with transformers' defaults, and with other defaults of a family's."""
    given = {**defaults, **_mapping(parameters)}
    older = given.pop("type", "default")
    kind = given.setdefault("rope_type", older)
    if not isinstance(kind, str) or kind not in RULES:
        raise ConfigError(
            f"config: rope_type={shown(kind)} is not implemented.",
            code="config-not-implemented",
            remedy=f"{nearest(str(kind), RULES)} Use a model with one of {', '.join(RULES)}.".strip(),
        )
    given.setdefault("rope_theta", 10000.0)
    needed = ("rope_theta", *NEEDED[kind])
    if kind in ("llama3", "yarn"):
        given.setdefault(_CONTEXT, n_ctx)
        needed = (*needed, _CONTEXT)
    missing = [name for name in needed if given.get(name) is None]
    if kind == "yarn" and "factor" in given:  # null stands for the quotient of both contexts
        missing = [name for name in missing if name != "factor"]
    if missing:
        raise ConfigError(
            f"config: rope_parameters={shown(given)}, without {', '.join(missing)}.",
            code="config-missing-field",
            remedy=f"Add the fields that rope_type {kind!r} needs: {', '.join(needed)}.",
        )
    for name in _NUMBERS:
        if given.get(name) is not None:
            given[name] = _number(name, given[name])
    return given


def rule_of(parameters: Mapping[str, Any], n_ctx: int, d_head: int, part: Any = 1.0) -> Rule:
    """The rule, by checked `rope_parameters`, that turns heads of a width, or their first entries."""
    width = int(d_head * read_number("partial_rotary_factor", part, math.inf))
    rule = Rule(parameters, width, n_ctx)
    if rule.turned > d_head:
        of = "" if part == 1 else f" and partial_rotary_factor={shown(part)}"
        raise ConfigError(
            f"config: heads of width {d_head}{of}, expected an even number of entries to turn, {d_head} at most: "
            "rotary positions turn pairs.",
            code="config-heads-do-not-divide",
            remedy=f"Give heads of an even width{' and a partial_rotary_factor of at most 1' if of else ''}.",
        )
    kind = parameters["rope_type"]
    # The one divides by width - 2, the other has a factor for each whole pair alone.
    if (kind == "dynamic" and width == 2) or (kind == "yarn" and width % 2):
        raise ConfigError(
            f"config: rope_type={kind!r} cannot turn {width} entries of each head.",
            code="config-not-implemented",
            remedy="Use a model with another width of heads or another rope_type; transformers cannot run it either.",
        )
    return rule


_CONTEXT, _SCALING = "original_max_position_embeddings", "rope_scaling"

_NUMBERS = (
    "rope_theta", "factor", "low_freq_factor", "high_freq_factor", _CONTEXT, "beta_fast", "beta_slow",
    "attention_factor", "mscale", "mscale_all_dim",
)  # fmt: skip
"""Parameters of rotary positions that are numbers above 0."""


def _number(name: str, value: Any) -> float | int:
    """A number above 0, whole if it is whole: products of whole numbers may round otherwise."""
    found = read_number(name, value, math.inf)
    if not found:
        raise ConfigError(
            f"config: {name}={shown(value)}, expected a number above 0.",
            code="config-out-of-range",
            remedy=f"Give a {name} above 0.",
        )
    return value if type(value) is int else found
