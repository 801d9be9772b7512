"""What a save and a reload make of a model and of each of its heads: the live model beside what comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import shown
from pellucid.numerics.rounding import same_numbers
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import Named, same_place
from pellucid.ties.standins import Refused, Reread, reread, saved_configuration, written
from pellucid.ties.subject import OUR_EMBED, OUR_HEAD, Declared, built, plain_linear, runs_another, weight_names


@dataclass(frozen=True)
class ReloadedHead:
    """What a reload makes of one head.

    Attributes:
        name: Its weight.
        survives: Whether it computes the same afterwards; None if saving raises.
        tied_after: Whether its weight is then another tensor's, the embedding's as a rule.
        reason: Why, in words.
    """

    name: str
    survives: bool | None
    tied_after: bool | None
    reason: str


@dataclass(frozen=True)
class Loss:
    """A name that does not come back as it was."""

    name: str  # in the model, or in the file
    # "replaced" (its module is of another class, or its forward is patched), "dropped" (the class has no such name),
    # "random" (not in the file), "dtype" or "overwritten" (other numbers come back), "setting" (an attribute of a
    # module that is built with another value), "rounded" (frequencies that a change of dtype rounded)
    code: str
    happens: str  # in words, after the name


@dataclass(frozen=True)
class AfterReload:
    """What `save_pretrained` and then `from_pretrained` of the same class would give back.

    Attributes:
        survives: Whether it would compute the same outputs: True, False, or None if there is nothing to reload,
            because saving raises or because there is no `save_pretrained`.
        tied_after: Whether its head would be its embedding; None without a head or a reloaded model.
        reason: In words.
        heads: The same for each head.
        lost: The names that come back with other numbers or not at all.
        written: Bytes of the tensors that would be written; None if saving raises.
    """

    survives: bool | None
    tied_after: bool | None
    reason: str
    heads: tuple[ReloadedHead, ...] = ()
    lost: tuple[Loss, ...] = ()
    written: int | None = None

    def __repr__(self) -> str:
        verdict = {True: "the same model", False: "another model", None: "no reload"}[self.survives]
        return f"after a save and a reload: {verdict}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def predict_hf(model: Any, named: Sequence[Named], declared: Declared, tied: bool | None = None) -> AfterReload:
    """Predict the reload of a transformers model, whose class saves and reads stand-ins for its tensors.

    `named` are its tensors under all of their names; `tied` is what the configuration is to say instead.
    """
    head, _ = weight_names(model)
    try:
        file, config = written(model, declared), saved_configuration(model)
    except Refused as refusal:
        return _failed(None, str(refusal), head)
    if tied is not None:
        config.tie_word_embeddings = tied
    try:
        again = reread(type(model), config, file)
    except Exception as problem:  # whatever a class raises, such as one that needs more than its configuration
        said = f"from_pretrained raises: {type(problem).__name__}: {problem}"
        return _failed(False, str(problem) if isinstance(problem, Refused) else said, head, size_of(file))
    live = {one.name: one.tensor for one in named}
    lost = _Comparison(live, file, again, dict(model.named_modules(remove_duplicate=False))).lost()
    return after_reload(again, file, lost, live)


def predict_ours(model: CkptedTransformer) -> AfterReload:
    """Predict the reload of a `CkptedTransformer`, whose head is written only if the configuration says untied."""
    expected, state = model.schema.stored, model.state_dict()
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in {*stored, *expected} if stored.get(name) != expected.get(name))
    if differing:
        return _failed(None, f"save_pretrained raises: {differing[0]} is not as the configuration says", OUR_HEAD)
    lost = tuple(changed_settings(dict(model.named_modules()), dict(built(model).named_modules())))
    tied, dtype = model.config.tie_word_embeddings, model.embed.W_E.dtype
    kept = "" if dtype == torch.float32 else f'; read it with dtype="stored" to compute in {dtype} again'
    once = f"{OUR_EMBED} is written once, and the head is tied to it{kept}"
    reason = sentence(lost) or (once if tied else f"{OUR_HEAD} and {OUR_EMBED} are both written and read{kept}")
    head = ReloadedHead(OUR_HEAD, not lost, tied, reason)
    return AfterReload(not lost, tied, reason, (head,), lost, size_of(state))


def _failed(survives: bool | None, reason: str, head: str | None, size: int | None = None) -> AfterReload:
    """Saving (None) or reading (False) raises."""
    heads = () if head is None else (ReloadedHead(head, survives, None, reason),)
    return AfterReload(survives, None, reason, heads, (), size)


def no_save(what: str, of: object = None) -> AfterReload:
    """Say that something has no `save_pretrained` of transformers, so nothing is predicted."""
    if not callable(getattr(type(of), "save_pretrained", None)):
        said = "has no save_pretrained"
    elif any(base.__module__.partition(".")[0] == "peft" for base in type(of).__mro__):
        said = "writes the adapter alone, without the model's tensors"
    else:
        said = "has a save_pretrained of its own, which is not predicted"
    return AfterReload(None, None, f"{what} {said}")


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def after_reload(
    again: Reread, file: Mapping[str, Tensor], lost: tuple[Loss, ...], live: Mapping[str, Tensor] | None = None
) -> AfterReload:
    """Put what is lost, and how each head comes back, into a verdict and words.

    `file` holds the tensors that are written; `live` those of the model that is saved, None if only files are known.
    """
    heads: list[ReloadedHead] = []
    for name in dict.fromkeys((again.head, *again.ties)):
        if name is not None:
            reason = sentence(_of_head(name, lost)) or _kept(name, again, file, live or {})
            heads.append(ReloadedHead(name, not _of_head(name, lost), name in again.tied, reason))
    first = next((head for head in heads if head.name == again.head), None)
    elsewhere = [loss for loss in lost if not any(loss in _of_head(head.name, lost) for head in heads)]
    said = [head.reason for head in heads] + ([sentence(elsewhere)] if elsewhere else [])
    reason = "; ".join(dict.fromkeys(said)) or "every tensor is stored and read"
    return AfterReload(not lost, first.tied_after if first else None, reason, tuple(heads), lost, size_of(file))


def _kept(name: str, again: Reread, file: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> str:
    """How a head that loses nothing comes back."""
    source = again.ties.get(name)
    if source is None:
        return f"{name} is stored and read as it is"
    if name not in again.tied:
        return f"{name} and {source} are both stored; they differ, so both are kept, against the configuration"
    if name in file and source in file:
        return f"{name} and {source} are both stored; they are equal, so {name} is tied to {source} without a message"
    if name in live and source in live and live[name] is not live[source]:
        as_ = source if source in file else name
        return f"two tensors over one memory are stored once, as {as_}, and come back as one"
    if name in file:
        return f"{name} alone is stored, and {source} is tied to it"
    return f"{source} is stored once, and {name} is tied to it"


def _of_head(head: str, lost: Sequence[Loss]) -> list[Loss]:
    """The losses in the module of a head's weight."""
    return [loss for loss in lost if loss.name.startswith(head.rpartition(".")[0] + ".")]


def sentence(lost: Sequence[Loss]) -> str:
    """Losses in words, those of one kind together."""
    kinds: dict[str, list[str]] = {}
    for loss in lost:
        kinds.setdefault(loss.happens, []).append(loss.name)
    return "; ".join(
        f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''} "
        f"{happens if len(names) == 1 else _of_several(happens)}"
        for happens, names in kinds.items()
    )


def _of_several(happens: str) -> str:
    plural = {"is": "are", "comes": "come"}
    return re.sub(r"\bit is\b", "they are", re.sub(r"^is\b|\bcomes\b", lambda verb: plural[verb[0]], happens))


@dataclass(frozen=True)
class _Comparison:
    """A live model and what comes back of it, name by name."""

    live: Mapping[str, Tensor]
    file: Mapping[str, Tensor]
    again: Reread
    modules: Mapping[str, nn.Module]

    def lost(self) -> tuple[Loss, ...]:
        """What comes back with other numbers, or not at all."""
        fresh = self.again.modules
        replaced: list[str] = []  # the outermost modules with other code; the model itself is of the class
        for path, module in self.modules.items():
            inside = path == "" or any(path.startswith(f"{outer}.") for outer in replaced)
            if not inside and path in fresh and not _same_code(module, fresh[path]):
                replaced.append(path)
        lost = [loss for path in replaced for loss in self._lost_under(path, self.modules[path], fresh[path])]
        for name in dict.fromkeys((*self.live, *self.again.source)):
            if not any(name.startswith(f"{path}.") for path in replaced):
                loss = self._loss(name)
                lost += [] if loss is None else [loss]
        return (*lost, *changed_settings(self.modules, fresh, skip=replaced))

    def _lost_under(self, path: str, module: nn.Module, other: nn.Module) -> list[Loss]:
        weight = f"{path}.weight"
        names = [n for n in self.live if n.startswith(f"{path}.")] or [weight if weight in self.again.source else path]
        kind = type(other).__name__
        gone = f"is lost: the class builds a {kind} in the place of this {type(module).__name__}"
        gone += ", whose forward was replaced" * runs_another(module)
        linear = plain_linear(module)
        if linear is not None and kind == "Linear" and weight in self.again.source:
            source = self.again.source[weight]
            if source is None:
                gone += ", with random numbers"
            elif equal(linear.weight, self.file[source]) and _adds_nothing(linear):
                return []
            elif weight in self.again.tied and weight in self.again.ties:
                gone += f", tied to {self.again.ties[weight]}"
        return [Loss(name, "replaced", gone) for name in names]

    def _loss(self, name: str) -> Loss | None:
        """What goes wrong with a name; None if nothing does."""
        if name not in self.again.source:
            linear = plain_linear(self.modules.get(name.removesuffix(".bias"))) if name.endswith(".bias") else None
            if linear is not None and _adds_nothing(linear):
                return None
            return Loss(name, "dropped", "is written, but the class has no such name, so that it is dropped")
        source = self.again.source[name]
        if source is None:
            return Loss(name, "random", "is not in the file, so that it is drawn at random")
        if name not in self.live:
            return None  # a name that the class has besides, with numbers from the file
        before, now, dtype = self.live[name], self.file[source], self.again.dtypes[name]
        if before.dtype != dtype:
            return Loss(name, "dtype", f"is {before.dtype} and comes back as {dtype}")
        if same_place(before, now) or equal(before, now):
            return None
        return Loss(name, "overwritten", f"comes back as {source}")


def _same_code(a: nn.Module, b: nn.Module) -> bool:
    if isinstance(a, _PASSING) and isinstance(b, _PASSING):
        return not runs_another(a) and (isinstance(a, nn.Identity) or type(a) is type(b) or not a.training)
    return (type(a) is type(b) or type(a).forward is type(b).forward) and not runs_another(a)


_PASSING = (nn.Identity, nn.Dropout)
"""Modules that pass on what they get, as long as they evaluate."""


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one shape, dtype and device, and hold the same numbers."""
    alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and not a.is_meta
    return alike and same_numbers(a, b)


def _adds_nothing(linear: nn.Linear) -> bool:
    """Whether a `Linear` computes the same without its bias."""
    bias = linear._parameters.get("bias")
    return bias is None or (bias.dtype == linear.weight.dtype and not bool(bias.count_nonzero()))


_DESCRIBES = frozenset(
    """
    training name_or_path gradient_checkpointing loss_type warnings_issued kernel_config
    in_features out_features num_embeddings embedding_dim
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Attributes of modules that no output of an evaluating model depends on."""


def changed_settings(
    live: Mapping[str, nn.Module], fresh: Mapping[str, nn.Module], skip: Sequence[str] = ()
) -> Iterator[Loss]:
    """Yield what modules keep and no file holds, such as an epsilon or rotary frequencies, if the class builds another.

    `live` are a model's modules by path, `fresh` those that its class builds from the saved configuration; what is at a
    path of `skip`, or in it, is not compared.
    """
    for path, module in live.items():
        if path not in fresh or any(path == outer or path.startswith(f"{outer}.") for outer in skip):
            continue
        after = vars(fresh[path])
        for name, before in _settings(module).items():
            if name in after and not _alike(before, after[name]):
                happens = f"is {_said(before)} and comes back as {_said(after[name])}"
                yield Loss(f"{path}.{name}" if path else name, "setting", happens)
        # Frequencies, which no file holds, transformers computes again; other memory is what happened to lie there.
        rotary = {name for name in module._non_persistent_buffers_set if name.endswith("inv_freq")}
        for name in sorted(rotary & fresh[path]._buffers.keys()):
            if code := _otherwise(module._buffers[name], fresh[path]._buffers[name]):
                happens = "is in no file, and the class builds other numbers"
                happens += ": a change of dtype rounded these" * (code == "rounded")
                yield Loss(f"{path}.{name}" if path else name, code, happens)


def _otherwise(held: Tensor | None, built: Tensor | None) -> str:
    """How frequencies differ from those that the class builds: "rounded", "setting", or "" if they do not."""
    if held is None or built is None or held.is_meta or built.is_meta:
        return ""
    wide = torch.promote_types(held.dtype, built.dtype)
    here, there, halves = held.to(wide), built.to(held.device, wide), (torch.bfloat16, torch.float16)
    rounded = any(equal(here, there.to(half).to(wide)) for half in halves)
    return "" if equal(here, there) else "rounded" if rounded else "setting"


def _settings(module: nn.Module) -> dict[str, Any]:
    """Its plain public attributes and functions; dropout's rate counts while training only."""
    skipped = {*_DESCRIBES, *(("p",) if isinstance(module, nn.Dropout) and not module.training else ())}
    plain = (bool, int, float, str, tuple, list, type(None), FunctionType, BuiltinFunctionType)
    kept = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    return {name: value for name, value in kept.items() if not name.startswith("_") and name not in skipped}


def _alike(a: Any, b: Any) -> bool:
    return a == b or repr(a) == repr(b) or (isinstance(a, FunctionType) and a.__code__ is getattr(b, "__code__", None))


def _said(value: Any) -> str:
    return value.__name__ if callable(value) else shown(value)


def overwritten_by_tying(model: Any) -> tuple[str, ...]:
    """The names whose own tensor `tie_weights()` or `resize_token_embeddings(...)` would replace, as things are."""
    try:
        pairs = model.get_expanded_tied_weights_keys(all_submodels=True).items()
    except (AttributeError, ValueError):  # a list from transformers 4, or patterns that fit nothing
        return ()
    live = dict(model.named_parameters(remove_duplicate=False))
    both = [(target, live[target], live[source]) for target, source in pairs if target in live and source in live]
    return tuple(target for target, a, b in both if a is not b and not equal(a, b))
