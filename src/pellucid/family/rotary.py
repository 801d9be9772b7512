"""Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of a head's entries, turned by angles that grow with the
position. `pellucid.family.rotary_rules` says how fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.family.attend import Attending
from pellucid.family.network import Network, Run
from pellucid.family.part import Weights
from pellucid.family.rotary_rules import RULES, Rule
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


ALIKE = 1e-4
"""How far frequencies that are rounded may be off, relative; those of another base are farther."""

ROUNDED = 2.0**-20
"""How far a table in float32 may be off, of 1 and the angle together: powers and products round a few times each."""


def adopt(network: Network, kept: Sequence[Tensor]) -> dict[int, Tensor]:
    """Give a network that is run in float64 the frequencies that another program keeps, or unrounded ones.

    What is kept in float32 is rounded, which is no error. Rotations of other bases are kept beside the network's: a
    comparison tries whether the program turns by one of them.

    Returns:
        By the `id` of what the program keeps, the same in float64 before it was rounded: tables of cosines, sines or
        angles, which may be read from any position on, and then its frequencies.
    """
    rule, rotary = network.config.rule, cast(Rotary, network.rotary)
    own, (rates, scaling) = rotary.inv_freq, RULES[rule.parameters["rope_type"]](rule)
    rates = rates.to(own.device)
    tables = ((table, _unrounded(table, rates, scaling)) for table in kept)
    exact = {id(table): made for table, made in tables if made is not None}
    frequencies = [t for t in kept if t.numel() == own.numel() and not t.is_complex()]
    same = [t for t in frequencies if bool(((t.flatten() / own - 1).abs() < ALIKE).all())]
    if exact:
        exact |= {id(t): rates.view(t.shape) for t in same}
    rotary.inv_freq = same[0].flatten() if same and not exact else rates
    widths = {len(own), network.config.sizes["d_head"] // 2} - {0}
    found = (other for pairs in widths for other in _others(kept, pairs))
    rotary.others = tuple(
        k for k in found if len(k.rates) != len(own) or not bool(((k.rates / own - 1).abs() < ALIKE).all())
    )
    return exact


def _unrounded(kept: Tensor, rates: Tensor, scaling: float) -> Tensor | None:
    """A table in float64, if it has a row per position and a column for each pair's cosine, sine or angle; else None.

    Columns may stand in any order and have any signs, and the first row may be of position 0 or 1.
    """
    table = torch.view_as_real(kept) if kept.is_complex() else kept
    shape, rows, pairs = table.shape, next((size for size in table.shape if size > 1), 1), len(rates)
    if not table.is_floating_point() or not pairs or rows < 3 or table.numel() not in (rows * pairs, 2 * rows * pairs):
        return None
    table = table.reshape(rows, -1).double()
    some = [1, rows // 2, rows - 1]  # which tell a column from all others
    for first in (0, 1):
        angles = torch.arange(first, rows + first, device=rates.device)[:, None] * rates
        columns = torch.cat([angles.cos() * scaling, angles.sin() * scaling, angles], 1).abs()
        which = (table[some].abs()[:, :, None] - columns[some][:, None]).abs().amax(0).argmin(1)
        made = columns[:, which].copysign(table)
        if bool(((made - table).abs() <= ROUNDED * (1 + angles[:, which % pairs])).all()):
            return torch.view_as_complex(made.view(shape)) if kept.is_complex() else made.view(shape)
    return None


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
