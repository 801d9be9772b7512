"""What is wrong with a model's ties, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.family.layout import EMBED, HEAD
from pellucid.ties.memory import Named, coverage
from pellucid.ties.output_head import REBUILD
from pellucid.ties.predict import Loss, sentence
from pellucid.ties.standins import GENERATION, NO_TENSOR
from pellucid.ties.subject import Subject
from pellucid.weights.layouts import endings

if TYPE_CHECKING:
    from pellucid.ties.audit import TieAudit

_KEEP_OR_TIE = "pl.untie(model) keeps them apart and makes the configuration say so; pl.tie(model) makes them one."
_PLAIN_HEAD = "torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)"
_EDIT = "t = safetensors.torch.load_file(path); {}; safetensors.torch.save_file(t, path, metadata={{'format': 'pt'}})"
"""How to change a weights file, `path`, from Python."""


@dataclass(frozen=True)
class Problem:
    """Something about ties that will surprise.

    Attributes:
        code: A stable identifier in kebab-case.
        message: What is the case, and what follows from it.
        remedy: What to do.
        names: The tensors that it is about.
    """

    code: str
    message: str
    remedy: str
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}  [{self.code}]"


def find(audit: TieAudit, subject: Subject, found: Sequence[Sequence[Named]]) -> tuple[Problem, ...]:
    """Return every problem, the gravest first; `found` are the subject's names, clustered by memory."""
    rules = (_reload(audit, subject), _declared_only(audit), _equal(audit, subject), _cache(audit),
             _memory(audit, subject), _part_of_more(subject, found), _stored(audit, subject),
             _optimizer(audit))  # fmt: skip
    return tuple(problem for rule in rules for problem in rule)


def _reload(audit: TieAudit, subject: Subject) -> Iterator[Problem]:
    after = audit.after_reload
    if subject.kind not in ("hf", "ours", "checkpoint") or after.survives is True:
        return
    if after.survives is None:
        if subject.kind == "checkpoint":
            return
        if GENERATION in after.reason:
            remedy = "Mend model.generation_config, which is checked when it is saved."
        elif NO_TENSOR in after.reason:
            remedy = "Save the model as it was before it was quantized, and quantize what is read from there."
        elif subject.declared.malformed:
            remedy = "Write it as a dict, {target: source}, as transformers 5 does."
        elif _held_twice(audit):
            remedy = (
                "Build a new model, in which no parameters are shared, and save it: "
                "own = type(model)(model.config).to(model.dtype); own.load_state_dict(model.state_dict()); "
                "pl.save_hf(own, folder)"
            )
        else:
            remedy = f"Give the class a head that it knows: pl.replace_head(model, {_PLAIN_HEAD}, tie=True)."
        yield Problem("save-raises", after.reason, remedy)
    elif not after.lost:
        yield Problem("reload-raises", after.reason, _fit_sizes(subject))
    for code in dict.fromkeys(loss.code for loss in after.lost):
        yield _loss([loss for loss in after.lost if loss.code == code], audit, subject)


def _held_twice(audit: TieAudit) -> bool:
    """Whether parameters outside of the head stand in a model under two names, as those of modules that are shared."""
    declared = {name for pair in (audit.declared.by_class or {}).items() for name in pair}
    return any(group.kind == "same parameter" and not declared & set(group.names) for group in audit.groups)


def _loss(lost: Sequence[Loss], audit: TieAudit, subject: Subject) -> Problem:
    names = tuple(loss.name for loss in lost)
    heads = [head.name for head in audit.after_reload.heads]
    code = lost[0].code
    if code == "random" and set(names) <= set(heads):
        code = "tie-not-in-config"
        remedy = (
            'Write "tie_word_embeddings": true into config.json, or read it without the override.'
            if subject.kind == "checkpoint"
            else "pl.tie(model) makes the configuration say tied; pl.untie(model) gives the head memory of its own."
        )
        return Problem(code, f"after a reload: {sentence(lost)}", remedy, names)
    place = (heads[0] if heads else "lm_head.weight").rpartition(".")[0]
    rotary, own = names[0].rpartition(".")[0], subject.kind == "ours"
    if code == "replaced":
        remedy = _rebuild_or_replace(names, subject, place, bool(heads))
    elif code == "dropped":
        remedy = _keep_or_give_up(names, subject, place)
    else:
        remedy = {
            "random": "Save it together with all of the class's tensors; if modules were taken out of it, make the "
            "configuration say so, such as the number of layers.",
            "dtype": "Give every tensor one dtype before saving: model.to(dtype).",
            "overwritten": _KEEP_OR_TIE,
            "rounded": "Open the model in its dtype instead of converting it, which rounds, or put a whole one there: "
            f"model.{rotary} = type(model.{rotary})(model.config{'.rule, model.device' if own else ''}).",
            "setting": "Change the configuration first and build the model from it: type(model)(config). What no "
            "configuration says has to be set again after every reload.",
        }[code]
    return Problem(f"reload-{code}", f"after a reload: {sentence(lost)}", remedy, names)


def _fit_sizes(subject: Subject) -> str:
    """What to do if tensors do not fit the configuration."""
    tensors = {one.name: one.tensor for one in subject.named}
    tied = (*endings(EMBED), *endings(HEAD))
    rows = {name: len(tensor) for name, tensor in tensors.items() if tensor.dim() == 2 and name.endswith(tied)}
    if len(set(rows.values())) < 2:
        fits = f" vocab_size is {next(iter(rows.values()))} then." if rows and subject.kind == "checkpoint" else ""
        return f"Make the configuration's sizes those of the tensors.{fits}"
    most, least = max(rows.values()), min(rows.values())
    said = " and ".join(f"{name} has {count} rows" for name, count in rows.items())
    if subject.kind == "hf":
        return f"No vocab_size fits both: {said}. model.resize_token_embeddings({most}) gives both {most}."
    name = next(name for name in rows if rows[name] == least)
    longer = f"t[{name!r}] = torch.nn.functional.pad(t[{name!r}], (0, 0, 0, {most - least}))"
    return (
        f"No vocab_size fits both: {said}. Fill up {name} with {most - least} rows of zeros, in Python by "
        f"`{_EDIT.format(longer)}`, and set vocab_size to {most} and tie_word_embeddings to false in config.json."
    )


def _keep_or_give_up(names: Sequence[str], subject: Subject, place: str) -> str:
    """What to do about tensors that the class has no name for; `place` is the module of the head."""
    checkpoint = subject.kind == "checkpoint"
    if all(name.startswith(("module.", "_orig_mod.")) for name in names):
        return "Save the model inside of the wrapper, or open it with pellucid.load, which looks below."
    if set(names) == {f"{place}.bias"}:
        give_up = f"delete {names[0]} from the file" if checkpoint else f"set model.{names[0]} = None"
        return (
            f"To keep it, {'read' if checkpoint else 'save and read'} the model with a subclass of its class whose "
            f"__init__ sets self.{place} = torch.nn.Linear(config.hidden_size, config.vocab_size), which has a bias. "
            f"To give it up, {give_up}."
        )
    if not checkpoint:
        return (
            "To keep them, save and read the model with a subclass of its class whose __init__ makes them. To give "
            "them up, take them out of the model."
        )
    inside = [name for name in names if name.startswith(f"{place}.")]
    if not inside:
        return "Read it with the class that wrote it, or delete these names from the file."
    rename, renamed = "", _only_matrix(inside, {one.name: one.tensor for one in subject.named})
    if renamed is not None:
        edit = _EDIT.format(f"t[{f'{place}.weight'!r}] = t.pop({renamed!r})")
        rename = (
            f" It is a plain head inside, so it may be renamed instead, in Python by `{edit}`, with "
            "tie_word_embeddings false in config.json."
        )
    return (
        f"To keep it, read the file with a subclass of the class whose __init__ sets self.{place} to the modules "
        f"that were saved. Before another save, pl.replace_head(model, {_PLAIN_HEAD}, tie=False) puts a head there "
        f"that the class knows.{rename}"
    )


def _rebuild_or_replace(names: Sequence[str], subject: Subject, place: str, has_head: bool) -> str:
    """What to do about modules that the class builds otherwise."""
    kept = _only_matrix(names, {one.name: one.tensor for one in subject.named})
    inner = "" if kept is None else kept.rpartition(".")[0]
    if inner.startswith(f"{place}."):
        return (
            f"pl.replace_head(model, model.get_submodule({inner!r}), tie=False) keeps its matrix in a head that the "
            "class builds; a subclass whose __init__ makes this head keeps all of it."
        )
    if has_head and any(name.startswith(f"{place}.") for name in names):
        return (
            f"To keep it, save and read the model with a subclass of its class whose __init__ makes this head. To give "
            f"it up, pl.replace_head(model, {_PLAIN_HEAD}, tie=...) puts one there that the class builds."
        )
    return "Save and read the model with a subclass of its class whose __init__ makes these modules."


def _only_matrix(names: Sequence[str], tensors: Mapping[str, Tensor]) -> str | None:
    """The one name among these, if it is the weight of a plain head."""
    return names[0] if len(names) == 1 and names[0] in tensors and tensors[names[0]].dim() == 2 else None


def _declared_only(audit: TieAudit) -> Iterator[Problem]:
    for name in audit.overwritten_by_tying:
        text = (
            f"the configuration says tied, but {name} has numbers of its own: tie_weights() and "
            "resize_token_embeddings() overwrite it, even without a change of size"
        )
        yield Problem("tied-by-config-only", text, _KEEP_OR_TIE, (name,))


def _equal(audit: TieAudit, subject: Subject) -> Iterator[Problem]:
    tied = {head.name for head in audit.after_reload.heads if head.tied_after}
    shared = {name for group in audit.groups if group.kind != "equal" for name in group.names}
    for group in audit.groups:
        if group.kind != "equal" or not tied & set(group.names) or tied & set(group.names) & shared:
            continue
        pair = " and ".join(group.names)
        if subject.kind == "checkpoint":
            text = f"{pair} are equal and tied when read, but the file holds the numbers {len(group.names)} times"
            remedy = "Write it again with save_pretrained or pl.save_hf, which write a tied tensor once."
            yield Problem("stored-twice", text, remedy, group.names)
        elif subject.kind == "hf":
            text = f"{pair} are equal, in memory of their own: a reload ties them, and training then moves both"
            yield Problem("equal-becomes-tied", text, _KEEP_OR_TIE, group.names)


def _cache(audit: TieAudit) -> Iterator[Problem]:
    together = [set(group.names) for group in audit.groups if group.kind in ("same parameter", "same memory")]
    stale = tuple(
        target
        for target, source in (audit.declared.by_cache or {}).items()
        if target not in audit.overwritten_by_tying and not any({target, source} <= names for names in together)
    )
    if stale:
        text = f"all_tied_weights_keys still lists {', '.join(stale)}, which is tied to nothing now"
        remedy = "pl.tie, pl.untie and pl.replace_head renew it; device maps and loading reports read it."
        yield Problem("cache-stale", text, remedy, stale)


def _memory(audit: TieAudit, subject: Subject) -> Iterator[Problem]:
    by_name = {one.name: one.tensor for one in subject.named}
    for group in audit.groups:
        names = " and ".join(group.names)
        # Our head is audited as a view; its parameter is another object than the embedding in any case.
        objects = {id(by_name[name]) for name in group.names if name in by_name}
        if group.kind == "same memory" and subject.trainable and len(objects) > 1:
            text = f"{names} are different Parameters over the same memory: counted twice, and stepped twice"
            remedy = "pl.tie(model) makes them one Parameter; in other modules assign one to the other."
            yield Problem("two-parameters", text, remedy, group.names)
        elif group.kind == "overlapping":
            text = f"{names} share some numbers: a write to one changes the other, and safetensors refuses them"
            yield Problem("overlapping-views", text, "Give each memory of its own: tensor.clone().", group.names)


def _part_of_more(subject: Subject, found: Sequence[Sequence[Named]]) -> Iterator[Problem]:
    if subject.kind not in ("module", "state dict", "checkpoint") or "safetensors" in subject.what:
        return
    storages: dict[int, tuple[int, list[str], int]] = {}
    for cluster in found:
        first = cluster[0].tensor
        if first.layout == torch.strided and not first.is_meta:
            storage = first.untyped_storage()
            size, names, covered = storages.get(storage._cdata, (storage.nbytes(), [], 0))
            storages[storage._cdata] = (size, [*names, *(one.name for one in cluster)], covered + coverage(cluster))
    for size, names, covered in storages.values():
        if 2 * covered < size:
            text = f"{', '.join(names[:4])} shows {covered:,} bytes of a storage of {size:,}: torch.save writes all"
            yield Problem("part-of-more", text, "Save tensor.clone() instead of the view.", tuple(names))


def _stored(audit: TieAudit, subject: Subject) -> Iterator[Problem]:
    names = {one.name for one in subject.named}
    for head in audit.after_reload.heads if subject.kind == "checkpoint" else ():
        tied_to = (subject.declared.by_class or {}).get(head.name)
        if head.name in names and head.tied_after and tied_to is not None and tied_to not in names:
            text = f"{head.name} is in the file and the embedding is not: the class without a head draws it at random"
            remedy = "Write it again with save_pretrained, which keeps the embedding's name."
            yield Problem("embedding-not-stored", text, remedy, (head.name,))
        if head.tied_after is False and audit.after_reload.survives and subject.declared.by_config:
            text = f"config.json says tied, but {head.name} has numbers of its own: tie_weights() would lose them"
            remedy = 'Write "tie_word_embeddings": false into config.json.'
            yield Problem("tied-by-config-only", text, remedy, (head.name,))


def _optimizer(audit: TieAudit) -> Iterator[Problem]:
    remedies = {
        "stepped-twice": f"Hold one Parameter for it, pl.tie(model), and {REBUILD}.",
        "optimizer-stale": f"{REBUILD[0].upper()}{REBUILD[1:]}.",
        "optimizer-misses": f"If it is to be trained, {REBUILD}; if not, set requires_grad=False.",
    }
    for code, text, names in audit.optimizer.said() if audit.optimizer else ():
        yield Problem(code, text, remedies[code], names)
