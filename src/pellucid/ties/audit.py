"""`audit_ties`: what is declared, what is live in memory, what is on disk, what is merely equal, and what follows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid.errors import MOST_PRINTED, ConfigError, InputError, printable, some
from pellucid.family.config import as_names
from pellucid.names.calls import named_arguments, named_methods
from pellucid.numerics.dispatch import ordinary_tensors
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import Named, TieGroup, clusters, count, coverage, equal_groups, group, shared_groups
from pellucid.ties.output_head import OptimizerFindings, compare_optimizer, require_optimizer
from pellucid.ties.predict import AfterReload, no_save, overwritten_by_tying, predict_hf, predict_ours
from pellucid.ties.problems import Problem, find
from pellucid.ties.stored import open_stored
from pellucid.ties.subject import Declared, Subject, is_hf, live_subject, state_dict_subject
from pellucid.weights import hub
from pellucid.weights.foreign import only_looks, unwrapped
from pellucid.weights.manifests import read_json

SHOWN_GROUPS = 12
"""How many groups are shown; a result has all of them."""


@named_methods
@dataclass(frozen=True, repr=False)
class TieAudit:
    """Everything about the ties of a model, a state dict or a weights file.

    Attributes:
        what: What was audited.
        groups: Names that share memory or numbers; see `TieGroup.kind`.
        declared: What class, configuration and transformers' cache say.
        unique: Numbers in parameters, each in memory once.
        by_name: The same with a tied tensor counted under each of its names.
        by_object: The same counted once per Parameter: what `sum(p.numel() for p in model.parameters())` says.
        bytes_in_memory: The bytes of all tensors, shared ones once.
        bytes_on_disk: The bytes of a saved model's weights files; of a model, the tensors that saving would write; of a
            state dict or another module, the storages that `torch.save` would write. None if saving raises.
        after_reload: What a save and a reload would give.
        overwritten_by_tying: Names that `tie_weights()` or `resize_token_embeddings()` would overwrite.
        optimizer: What the optimizer given does with the parameters.
        problems: What will surprise, each with a remedy.
    """

    what: str
    groups: tuple[TieGroup, ...]
    declared: Declared
    unique: int
    by_name: int
    by_object: int
    bytes_in_memory: int
    bytes_on_disk: int | None
    after_reload: AfterReload
    overwritten_by_tying: tuple[str, ...] = ()
    optimizer: OptimizerFindings | None = None
    problems: tuple[Problem, ...] = ()

    def __repr__(self) -> str:
        return printable("\n".join(self._lines()), MOST_PRINTED)

    def _lines(self) -> Iterator[str]:
        yield f"ties of {self.what}"
        yield from (f"  {label}: {said}" for label, said in self.facts().items())
        yield from (f"  {group!r}" for group in self.groups[:SHOWN_GROUPS])
        if len(self.groups) > SHOWN_GROUPS:
            yield f"  and {len(self.groups) - SHOWN_GROUPS} more groups"
        if not self.groups:
            yield "  no names share memory or numbers"
        yield f"  {self.after_reload!r}"
        for problem in self.problems:
            yield f"  problem: {problem.message}"
            yield f"    remedy: {problem.remedy}  [{problem.code}]"
        if not self.problems:
            yield "  no problems"

    def facts(self) -> dict[str, str]:
        """Counts, sizes and declarations in words, by their labels."""
        counts = f"{self.unique:,} unique, {self.by_name:,} by name"
        by_object = "" if self.by_object in (self.unique, self.by_name) else f", {self.by_object:,} by Parameter"
        disk = "not to be saved" if self.bytes_on_disk is None else f"{self.bytes_on_disk:,} on disk"
        return {
            "parameters": counts + by_object,
            "bytes": f"{self.bytes_in_memory:,} in memory, {disk}",
            "declared": str(self.declared),
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON; addresses as hexadecimal text."""
        content = dataclasses.asdict(self)
        for one in content["groups"]:
            one["addresses"] = [f"0x{address:x}" for address in one["addresses"]]
        return content

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


@named_arguments()
@ordinary_tensors()
def audit_ties(
    x: nn.Module | Mapping[str, Tensor] | str | PathLike[str],
    *,
    optimizer: Optimizer | None = None,
    tie_word_embeddings: bool | None = None,
) -> TieAudit:
    """Find which names share memory, who says that they do, and what a save and a reload would make of it.

    The model is only read: it is not run, nothing is registered, moved or drawn. To know what a reload gives, a
    transformers model's configuration is saved in a temporary folder, and its class reads stand-ins for the tensors,
    which take no memory.

    A file shows what was written: a head that was tied again before, as `resize_token_embeddings` does where the
    configuration says tied, is not in it. The audit of the model, before, shows it (`overwritten_by_tying`).

    Args:
        x: A model of ours, of transformers or any module; a state dict; a weights file (safetensors, `.bin`,
            `.pt`), an index of shards or a folder; or the alias or hub id of a published one.
        optimizer: To find what it steps twice, or not at all; only with a model.
        tie_word_embeddings: What the configuration is to say instead of what it does, to predict
            `from_pretrained(..., tie_word_embeddings=...)`.

    Raises:
        InputError: If it is none of these.
        NotFoundError: If there is no such path.
        WeightsError: If the file cannot be read.

    Example:
        >>> import pellucid as pl
        >>> from pellucid.ties import audit_ties
        >>> audit = audit_ties(pl.load())
        >>> audit.groups[0].names, audit.by_name - audit.unique, audit.after_reload.survives
        (('embed.W_E', 'unembed.W_U'), 1048576, True)
    """
    require_optimizer("audit_ties", optimizer)
    if optimizer is not None and not isinstance(x, nn.Module):
        raise InputError(
            f"audit_ties: an optimizer with {type(x).__name__}, expected a model.",
            code="optimizer-without-model",
            remedy="Give the model whose parameters the optimizer holds.",
        )
    if tie_word_embeddings is not None and not (is_hf(unwrapped(x)) or isinstance(x, (str, PathLike))):
        raise InputError(
            f"audit_ties: tie_word_embeddings= with {type(x).__name__}, expected what from_pretrained reads or made.",
            code="override-without-configuration",
            remedy="Leave it out, or give a weights file, a folder or a model of transformers.",
        )
    if isinstance(x, nn.Module):
        return _audit_model(unwrapped(x), optimizer, tie_word_embeddings)
    if isinstance(x, Mapping):
        subject = state_dict_subject(x)
        tensors = [one.tensor for one in subject.named]
        return _audit(subject, no_save("a state dict"), _torch_saved(tensors))
    if isinstance(x, (str, PathLike)):
        opened = open_stored(hub.locate(x), tied=tie_word_embeddings)
        return _audit(opened.subject, opened.after, opened.nbytes)
    raise InputError(
        f"audit_ties: given {type(x).__name__}, expected a model, a state dict or a path.",
        code="not-auditable",
        remedy="Give the model itself, model.state_dict(), or the path of a weights file or folder.",
    )


def ties_report(
    path: str | PathLike[str], config: str | PathLike[str] | None = None, ignore_config: Collection[str] = ()
) -> TieAudit:
    """The audit of a weights file or folder: what `pellucid ties PATH` shows, perhaps by a configuration of its own."""
    given = None if config is None else read_json(Path(config), ConfigError, "config-not-json")
    opened = open_stored(hub.locate(path), config=given, ignored=as_names(ignore_config))
    return _audit(opened.subject, opened.after, opened.nbytes)


def _audit_model(model: nn.Module, optimizer: Optimizer | None, tied: bool | None) -> TieAudit:
    with torch.no_grad():
        subject = live_subject(model)
        overwritten: tuple[str, ...] = ()
        if isinstance(model, CkptedTransformer):
            after = predict_ours(model)
        elif subject.kind == "hf":
            after = predict_hf(model, subject.named, subject.declared, tied)
            overwritten = overwritten_by_tying(model)
        else:
            after = no_save(f"a {type(model).__name__}", model)
        held = ((path or "it", {**one._forward_hooks, **one._forward_pre_hooks}) for path, one in model.named_modules())
        hooked = [path for path, own in held if not all(map(only_looks, own.values()))]
        if hooked and after.survives:
            reason = f"{after.reason}; hooks on {some(hooked)} are in no file, with all that they change"
            after = dataclasses.replace(after, reason=reason)
        on_disk = _torch_saved([one.tensor for one in subject.named]) if subject.kind == "module" else after.written
        findings = None if optimizer is None else compare_optimizer(optimizer, subject.named)
        return _audit(subject, after, on_disk, overwritten, findings)


def _torch_saved(tensors: Sequence[Tensor]) -> int:
    """Bytes that `torch.save` writes of the storages of tensors, each of them whole and once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided}
    return sum(storages.values())


def _audit(
    subject: Subject,
    after: AfterReload,
    on_disk: int | None,
    overwritten: tuple[str, ...] = (),
    findings: OptimizerFindings | None = None,
) -> TieAudit:
    found = clusters(subject.named)
    declared = _declared_groups(subject)
    parameters = [one for one in subject.named if one.counted]
    promised = sum(torch.Size(one.shape).numel() * (len(one.names) - 1) for one in declared)
    by_name = sum(one.tensor.numel() for one in parameters) + promised
    audit = TieAudit(
        what=subject.what,
        groups=(*shared_groups(found), *equal_groups(found), *declared),
        declared=subject.declared,
        unique=sum(count(cluster) for cluster in clusters(parameters)),
        by_name=by_name,
        by_object=sum(tensor.numel() for tensor in subject.trainable) if subject.trainable else by_name,
        bytes_in_memory=sum(coverage(cluster) for cluster in found),
        bytes_on_disk=on_disk,
        after_reload=after,
        overwritten_by_tying=overwritten,
        optimizer=findings,
    )
    return dataclasses.replace(audit, problems=find(audit, subject, found))


def _declared_groups(subject: Subject) -> list[TieGroup]:
    """Ties that reading a checkpoint makes of a name that it has and a name that it has not."""
    if subject.kind != "checkpoint":
        return []
    held = {one.name: one.tensor for one in subject.named}
    pairs = {**(subject.declared.by_class or {}), **(subject.declared.recorded or {})}
    found: dict[frozenset[str], TieGroup] = {}
    for target, source in pairs.items():
        there = source if source in held else target
        absent = target if source in held else source
        if there in held and absent not in held:
            pair = frozenset((there, absent))
            found[pair] = group([Named(there, held[there]), Named(absent, held[there])], "declared")
    return list(found.values())
