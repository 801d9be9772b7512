"""What a comparison says of a module that was given in training mode: it is judged as it evaluates."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pellucid.numerics.rounding import relative_error
from pellucid.prove.copies import is_scripted
from pellucid.prove.lending import Loan
from pellucid.prove.program import Program
from pellucid.prove.runs import same_bits


def mode_note(name: str, module: nn.Module, ids: Tensor, head: Tensor) -> list[str]:
    """What to say of a module, all or part of which is in training mode, if that changes its logits.

    Args:
        name: What the side is called.
        module: As its caller gave it; left as it is.
        ids: What to run [B, P].
        head: [V, D], what a program without a head is multiplied with.
    """
    children = list(module.modules())
    if any(map(is_scripted, children)) or not any(child.training for child in children):
        return []
    program = Program(Loan(module), (), head)
    try:
        plain = program.plain(ids)
        first, second = (program.plain(ids, evaluating=False, number=number) for number in (0, 1))
    except Exception:  # whatever a foreign forward raises: then the comparison says it
        return []
    if same_bits(first, plain) and same_bits(second, plain):
        return []
    judged = f"it is judged as it evaluates: call {name}.eval() before it is used so"
    if same_bits(first, second):
        gap = relative_error(first, plain)
        return [f"{name} was given in training mode, in which its logits are off by {gap:.2g} of the largest; {judged}"]
    return [f"{name} was given in training mode, in which its logits are random from run to run{_dropout(children)}; "
            f"{judged}"]  # fmt: skip


def _dropout(children: list[nn.Module]) -> str:
    """The dropout that acts, in words; nothing where no module of torch's says so."""
    rates = [child.p for child in children if isinstance(child, _DropoutNd) and child.training and child.p]
    if not rates:
        return ""
    named = ", ".join(f"{rate:g}" for rate in sorted(set(rates)))
    return f" (dropout of {named} in {len(rates)} module{'s' * (len(rates) > 1)})"
