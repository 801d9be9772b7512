"""What is wrong with a model's ties, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pellucid.ties import remedies
from pellucid.ties.memory import Named, TieGroup, coverage
from pellucid.ties.optimizers import REBUILD, OptimizerFindings
from pellucid.ties.predict import AfterReload, Loss, sentence
from pellucid.ties.standins import GENERATION, NO_TENSOR
from pellucid.ties.subject import Subject

KEEP_OR_TIE = "pl.untie(model) keeps them apart and makes the configuration say so; pl.tie(model) makes them one."


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


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Args:
        subject: What is audited.
        found: Its names, clustered by memory.
        groups: Those that share something.
        after: What a reload gives.
        overwritten: What `tie_weights()` would replace.
        optimizer: What the optimizer does; None without one.
    """

    subject: Subject
    found: Sequence[Sequence[Named]]
    groups: Sequence[TieGroup]
    after: AfterReload
    overwritten: tuple[str, ...] = ()
    optimizer: OptimizerFindings | None = None


def find(facts: Facts) -> tuple[Problem, ...]:
    """Every problem, the gravest first."""
    rules = (_reload, _declared_only, _equal, _cache, _memory, _stored, _optimizer)
    return tuple(problem for rule in rules for problem in rule(facts))


def _reload(facts: Facts) -> Iterator[Problem]:
    after = facts.after
    if facts.subject.kind not in ("hf", "ours", "checkpoint") or after.survives is True:
        return
    if after.survives is None:
        if facts.subject.kind == "checkpoint":
            return
        if GENERATION in after.reason:
            remedy = "Mend model.generation_config, which is checked when it is saved."
        elif NO_TENSOR in after.reason:
            remedy = "Save the model as it was before it was quantized, and quantize what is read from there."
        elif facts.subject.declared.malformed:
            remedy = "Write it as a dict, {target: source}, as transformers 5 does."
        else:
            remedy = f"Give the class a head that it knows: pl.replace_head(model, {remedies.PLAIN_HEAD}, tie=True)."
        yield Problem("save-raises", after.reason, remedy)
    elif not after.lost:
        yield Problem("reload-raises", after.reason, remedies.for_sizes(facts.subject))
    for code in dict.fromkeys(loss.code for loss in after.lost):
        yield _loss([loss for loss in after.lost if loss.code == code], facts)


def _loss(lost: list[Loss], facts: Facts) -> Problem:
    names = tuple(loss.name for loss in lost)
    message = f"after a reload: {sentence(lost)}"
    heads = {fate.name for fate in facts.after.heads}
    head = next((fate.name for fate in facts.after.heads), None)
    known = {
        "replaced": remedies.for_replaced(names, facts.subject, head),
        "dropped": remedies.for_dropped(names, facts.subject, head),
        "random": "Save it together with all of the class's tensors.",
        "dtype": "Give every tensor one dtype before saving: model.to(dtype).",
        "overwritten": KEEP_OR_TIE,
        "setting": "Change the configuration first and build the model from it: type(model)(config). What no "
        "configuration says has to be set again after every reload.",
    }
    code, remedy = f"reload-{lost[0].code.replace(' ', '-')}", known[lost[0].code]
    if lost[0].code == "dropped" and all(name.startswith(("module.", "_orig_mod.")) for name in names):
        remedy = "Save the model inside of the wrapper, or open it with pellucid.load, which looks below."
    if lost[0].code == "random" and set(names) <= heads:
        code = "tie-not-in-config"
        remedy = (
            'Write "tie_word_embeddings": true into config.json, or read it without the override.'
            if facts.subject.kind == "checkpoint"
            else "pl.tie(model) makes the configuration say tied; pl.untie(model) gives the head memory of its own."
        )
    return Problem(code, message, remedy, names)


def _declared_only(facts: Facts) -> Iterator[Problem]:
    for name in facts.overwritten:
        yield Problem(
            "tied-by-config-only",
            f"the configuration says tied, but {name} has numbers of its own: tie_weights() and "
            "resize_token_embeddings() overwrite it, even without a change of size",
            KEEP_OR_TIE,
            (name,),
        )


def _equal(facts: Facts) -> Iterator[Problem]:
    tied = {fate.name for fate in facts.after.heads if fate.tied_after}
    shared = {name for group in facts.groups if group.kind != "equal" for name in group.names}
    for group in facts.groups:
        if group.kind != "equal" or not tied & set(group.names) or tied & set(group.names) & shared:
            continue
        pair = " and ".join(group.names)
        if facts.subject.kind == "checkpoint":
            yield Problem(
                "stored-twice",
                f"{pair} are equal and tied when read, but the file holds the numbers {len(group.names)} times",
                "Write it again with save_pretrained or pl.save_hf, which write a tied tensor once.",
                group.names,
            )
        elif facts.subject.kind == "hf":
            yield Problem(
                "equal-becomes-tied",
                f"{pair} are equal, in memory of their own: a reload ties them, and training then moves both",
                KEEP_OR_TIE,
                group.names,
            )


def _cache(facts: Facts) -> Iterator[Problem]:
    cache = facts.subject.declared.by_cache or {}
    together = [set(group.names) for group in facts.groups if group.kind in ("same parameter", "same memory")]
    stale = [
        t for t, s in cache.items() if t not in facts.overwritten and not any({t, s} <= names for names in together)
    ]
    if stale:
        yield Problem(
            "cache-stale",
            f"all_tied_weights_keys still lists {', '.join(stale)}, which is tied to nothing now",
            "pl.tie, pl.untie and pl.replace_head renew it; device maps and loading reports read it.",
            tuple(stale),
        )


def _memory(facts: Facts) -> Iterator[Problem]:
    by_name = {one.name: one.tensor for one in facts.subject.named}
    parameters = {id(tensor) for tensor in facts.subject.trainable}
    for group in facts.groups:
        names = " and ".join(group.names)
        # Our head is audited as a view; its parameter is another object than the embedding in any case.
        objects = {id(by_name[name]) for name in group.names if name in by_name}
        if group.kind == "same memory" and parameters and len(objects) > 1:
            yield Problem(
                "two-parameters",
                f"{names} are different Parameters over the same memory: counted twice, and stepped twice",
                "pl.tie(model) makes them one Parameter; in other modules assign one to the other.",
                group.names,
            )
        elif group.kind == "overlapping":
            yield Problem(
                "overlapping-views",
                f"{names} share some of their numbers: a write to one changes the other, and safetensors refuses them",
                "Give each memory of its own: tensor.clone().",
                group.names,
            )
    if facts.subject.kind in ("module", "state dict", "checkpoint"):
        yield from _part_of_more(facts)


def _part_of_more(facts: Facts) -> Iterator[Problem]:
    storages: dict[int, tuple[int, list[str], int]] = {}
    for cluster in facts.found:
        first = cluster[0].tensor
        if first.layout != torch.strided or first.is_meta or "safetensors" in facts.subject.what:
            continue
        storage = first.untyped_storage()
        size, names, covered = storages.get(storage._cdata, (storage.nbytes(), [], 0))
        storages[storage._cdata] = (size, [*names, *(one.name for one in cluster)], covered + coverage(cluster))
    for size, names, covered in storages.values():
        if 2 * covered < size:
            yield Problem(
                "part-of-more",
                f"{', '.join(names[:4])} shows {covered:,} bytes of a storage of {size:,}: torch.save writes all of it",
                "Save tensor.clone() instead of the view.",
                tuple(names),
            )


def _stored(facts: Facts) -> Iterator[Problem]:
    if facts.subject.kind != "checkpoint":
        return
    names = {one.name for one in facts.subject.named}
    for fate in facts.after.heads:
        tied_to = (facts.subject.declared.by_class or {}).get(fate.name)
        if fate.name in names and fate.tied_after and tied_to not in names:
            yield Problem(
                "embedding-not-stored",
                f"{fate.name} is in the file and the embedding is not: a GPT2Model without a head draws it at random",
                "Write it again with save_pretrained, which keeps the embedding's name.",
                (fate.name,),
            )
        if fate.tied_after is False and facts.after.survives and facts.subject.declared.by_config:
            yield Problem(
                "tied-by-config-only",
                f"config.json says tied, but {fate.name} has numbers of its own: both are kept, tie_weights() loses it",
                'Write "tie_word_embeddings": false into config.json.',
                (fate.name,),
            )


def _optimizer(facts: Facts) -> Iterator[Problem]:
    findings = facts.optimizer
    if findings is None:
        return
    for names in findings.twice:
        text = f"the optimizer steps {' = '.join(names)} more than once in each step"
        yield Problem("stepped-twice", text, f"Hold one Parameter for it, pl.tie(model), and {REBUILD}.", names)
    if findings.stale:
        shapes = ", ".join(str(list(shape)) for shape in findings.stale)
        text = f"the optimizer steps tensors that the model does not have (any more), of shapes {shapes}"
        yield Problem("optimizer-stale", text, f"{REBUILD[0].upper()}{REBUILD[1:]}.")
    if findings.missed:
        text = f"the optimizer does not step {', '.join(findings.missed[:4])}, which is trainable"
        remedy = f"If it is to be trained, {REBUILD}; if not, set requires_grad=False."
        yield Problem("optimizer-misses", text, remedy, findings.missed)
