"""Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of a head's entries, turned by angles that grow with the
position. `pellucid.rotary_rules` says how fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.attend import Attending
from pellucid.network import Network, Run
from pellucid.part import Weights
from pellucid.rotary_rules import RULES, Rule
from pellucid.tap import Tap

FREQUENCIES = "rotary.inv_freq"
"""Where a network keeps them."""

Turn = tuple[Tensor, Tensor]
"""Cosines and sines [B, P, K] of every position's angles."""


class Rotary(nn.Module):
    """Positions [B, P] -> how far each pair of a head's entries is turned, by the configuration's rule.

    Its frequencies are a buffer as in transformers: what changes a model's dtype afterwards (`model.to`) rounds them,
    in a model of transformers' and in its copy alike; a model that is opened in a dtype has them whole.
    """

    inv_freq: Tensor
    others: tuple[KeptRotation, ...] = ()

    def __init__(self, rule: Rule, device: torch.device | str = "cpu") -> None:
        super().__init__()
        with torch.device("cpu"):
            inv_freq, self.attention_scaling = RULES[rule.parameters["rope_type"]](rule)
        self.register_buffer("inv_freq", inv_freq.to(device), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        """Cosines and sines, computed in float32, in the dtype of the values that are turned."""
        angles = positions[..., None].float() * self.inv_freq.to(torch.float)
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * self.attention_scaling, both.sin() * self.attention_scaling
        return cos.to(dtype), sin.to(dtype)


def turned(values: Tensor, turn: Turn) -> Tensor:
    """[B, H, P, K], its entries i and i + K / 2 turned as one pair."""
    cos, sin = (part.unsqueeze(1) for part in turn)
    first, second = values[..., : values.shape[-1] // 2], values[..., values.shape[-1] // 2 :]
    return (values * cos) + (torch.cat((-second, first), dim=-1) * sin)


def know_positions(network: Network, config: Any, weights: Weights) -> None:
    """Put the rotation into a network."""
    network.rotary = Rotary(config.rule, network.embed.W_E.device)


def beside(network: Network, run: Run, residual: Tensor) -> dict[str, Turn]:
    """The rotation of the positions of a run, which each of its blocks is given."""
    return {"turn": network.rotary(run.positions, residual.dtype)}


class RotaryAttending(Attending):
    """Attention whose queries and keys are turned by their positions before they meet."""

    copies_cached = True

    def settle(self, config: Any, block: int) -> None:
        self._rule: Rule = config.rule
        self.attn_pdrop = config.attention_dropout

    def placed(self, q: Tensor, k: Tensor, turn: Turn | None, tap: Tap | None) -> tuple[Tensor, Tensor, bool]:
        turn = self._turn_of(q) if turn is None else turn
        rot_q, rot_k = (self.turned(values.transpose(1, 2), turn).transpose(1, 2) for values in (q, k))
        seen_q, seen_k = self.ckpt_rot_q(rot_q, tap=tap), self.ckpt_rot_k(rot_k, tap=tap)
        return seen_q, seen_k, seen_q is not rot_q or seen_k is not rot_k

    def turned(self, values: Tensor, turn: Turn) -> Tensor:
        """[B, H, P, K], turned."""
        return turned(values, turn)

    def joined(self, z: Tensor) -> Tensor:
        bias = self.b_O if "b_O" in self._parameters else None
        return self._products.linear(z.flatten(2).contiguous(), self.W_O, bias, rows=_outputs)

    def _turn_of(self, q: Tensor) -> Turn:
        """The rotation of positions that count from 0."""
        positions = torch.arange(q.size(1), device=q.device).expand(q.shape[:2])
        return Rotary(self._rule, q.device)(positions, q.dtype)

    def _normalized(self, scores: Tensor, v: Tensor, *, in_place: bool) -> Tensor:
        """As transformers' eager attention: in float32 whatever the dtype, which beside the fused kernel is no less."""
        dtype = torch.float32 if self.eager else torch.promote_types(scores.dtype, torch.float32)
        if dtype == scores.dtype:
            return super()._normalized(scores, v, in_place=in_place)
        if scores.dtype == torch.float64:
            # its least number is none of float32: a row of pads would have nothing left
            scores = scores.clamp(min=torch.finfo(dtype).min)
        return F.softmax(scores, dim=-1, dtype=dtype).to(v.dtype)


def _outputs(matrices: Tensor) -> Tensor:
    """[H, K, D] -> [D, H K], as the memory lies."""
    return matrices.flatten(0, 1).t()


class Tables(nn.Module):
    """Cosines and sines of positions from 0 [P, K / 2] that another program keeps, in the place of `Rotary`."""

    others: tuple[KeptRotation, ...] = ()

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.cos, self.sin = cos, sin

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        """Rows of the tables, for each half of a head."""
        cos, sin = (torch.cat((table, table), dim=-1)[positions].to(dtype) for table in (self.cos, self.sin))
        return cos, sin


class KeptRotation(NamedTuple):
    """A rotation that another program keeps, in tables or as frequencies."""

    base: float  # its base, as far as a few digits say
    rates: Tensor  # radians per position of each pair [K / 2]
    # cos, sin: of the angles of positions from 0, [P, K / 2], where it keeps them
    cos: Tensor | None = None
    sin: Tensor | None = None

    def turn(self, length: int, like: Tensor) -> Turn:
        """Cosines and sines [1, P, K / 2] of that many positions."""
        if self.cos is not None and self.sin is not None:
            return self.cos[None, :length].to(like), self.sin[None, :length].to(like)
        angles = torch.arange(length, device=like.device)[:, None] * self.rates.to(like)
        return angles.cos()[None], angles.sin()[None]


COMPARED = 64
"""Positions whose cosines and sines say whether a table is one of them."""

ALIKE = 1e-4
"""How far a table in float32 may be from them: angles of thousands are a tenth of it off."""


def adopt(network: Network, kept: Sequence[Tensor]) -> None:
    """Give a network that is run in float64 the cosines and sines, or the frequencies, that another program keeps.

    In float32 they are rounded, which is no error; a program that keeps none computes them in float64. Those of other
    bases are kept beside them: a comparison tries whether the program turns by one of them.
    """
    rule, rotary = network.config.rule, cast(Rotary, network.rotary)
    own = rotary.inv_freq
    angles = torch.arange(COMPARED, device=own.device)[:, None] * own
    cos, sin = (_found(kept, rotary.attention_scaling * part) for part in (angles.cos(), angles.sin()))
    if cos is not None and sin is not None:
        network.rotary = Tables(cos, sin)
    else:
        frequencies = (t.flatten() for t in kept if t.numel() == own.numel() and not t.is_complex())
        same = (t for t in frequencies if bool(((t / own - 1).abs() < ALIKE).all()))
        rotary.inv_freq = next(same, RULES[rule.parameters["rope_type"]](rule)[0].to(own.device))
    widths = {len(own), network.config.sizes["d_head"] // 2} - {0}
    found = (other for pairs in widths for other in _others(kept, pairs))
    network.rotary.others = tuple(
        k for k in found if len(k.rates) != len(own) or not bool(((k.rates / own - 1).abs() < ALIKE).all())
    )


def _found(kept: Sequence[Tensor], wanted: Tensor) -> Tensor | None:
    """The first table whose rows begin as those that are wanted [P, K / 2], however its columns repeat."""
    tables = _tables(kept, wanted.size(1))
    return next((h for h in tables if bool(((h[:COMPARED] - wanted[: len(h)]).abs() < ALIKE).all())), None)


def _tables(kept: Sequence[Tensor], pairs: int) -> Iterator[Tensor]:
    """What may be a table [P, K / 2] of cosines or sines: of each, one column for every pair."""
    parts = (part for t in kept for part in ((t.real, t.imag) if t.is_complex() else (t,)) if part.is_floating_point())
    for part in parts:
        if part.dim() > 1 and part.shape[-1] in (pairs, 2 * pairs):
            table = part.flatten(0, -2)
            yield from (table[:, :pairs], table[:, :: table.size(1) // pairs])


def _others(kept: Sequence[Tensor], pairs: int) -> Iterator[KeptRotation]:
    """Rotations by the powers of some base, of so many pairs; the angles at position 1 say of which."""
    tables = [table for table in _tables(kept, pairs) if len(table) > 1]
    cosines, sines = ([t for t in tables if bool((t[0] == first).all())] for first in (1, 0))
    for cos, sin in zip(cosines, sines, strict=False):
        rates = torch.atan2(sin[1].double(), cos[1].double())
        if (base := _base(rates)) is not None:
            yield KeptRotation(base, rates, cos, sin)
    for rates in (t.flatten() for t in kept if t.numel() == pairs and t.is_floating_point()):
        if (base := _base(rates.double())) is not None:
            yield KeptRotation(base, rates)


def _base(rates: Tensor) -> float | None:
    """The base of which frequencies [K / 2] are the powers, to four digits; None if they are no powers of one."""
    pairs, last = len(rates), float(rates[-1])
    if pairs < 2 or not 0 < last < 1:
        return None
    base = last ** (-pairs / (pairs - 1))
    powers = base ** -(torch.arange(pairs, dtype=rates.dtype, device=rates.device) / pairs)
    return float(f"{base:.4g}") if bool(((rates / powers - 1).abs() < ALIKE).all()) else None
