"""What a save and a reload would do to a model and to each of its heads, without performing either."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn

from pellucid.errors import shown
from pellucid.ties.exchange import (
    Fresh,
    Read,
    Refused,
    embeddings_of,
    equal,
    fresh,
    read,
    unsaveable_generation,
    unsaveable_state,
    written,
)
from pellucid.ties.memory import Named
from pellucid.ties.subject import Declared


@dataclass(frozen=True)
class HeadFate:
    """What happens to one head.

    Attributes:
        name: Its weight.
        survives: Whether it computes the same afterwards; None where saving raises.
        tied_after: Whether its weight is then another tensor's, the embedding's as a rule.
        reason: In words.
    """

    name: str
    survives: bool | None
    tied_after: bool | None
    reason: str


@dataclass(frozen=True)
class Loss:
    """A name that does not come back as it was.

    Attributes:
        name: In the model, or in the file.
        code: "replaced" (its module is of another class, or its forward is patched), "dropped" (the class has no such
            name), "random" (not in the file), "dtype" or "overwritten" (other numbers come back), "setting" (an
            attribute of a module that is built with another value).
        happens: In words, after the name.
    """

    name: str
    code: str
    happens: str


@dataclass(frozen=True)
class AfterReload:
    """What `save_pretrained` and then `from_pretrained` of the same class would give back.

    Attributes:
        survives: Whether it would compute the same outputs: True, False, or None where there is nothing to reload,
            because saving raises or because there is no `save_pretrained`.
        tied_after: Whether its head would be its embedding; None without a head or a reloaded model.
        reason: In words.
        heads: The same for each head.
        lost: The names that come back with other numbers or not at all.
        written: Bytes of the tensors that would be written; None where saving raises.
    """

    survives: bool | None
    tied_after: bool | None
    reason: str
    heads: tuple[HeadFate, ...] = ()
    lost: tuple[Loss, ...] = ()
    written: int | None = None

    def __repr__(self) -> str:
        verdict = {True: "the same model", False: "another model", None: "no reload"}[self.survives]
        return f"after a save and a reload: {verdict}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def predict_hf(model: Any, named: Sequence[Named], declared: Declared, tied: bool | None = None) -> AfterReload:
    """The fate of a transformers model.

    Args:
        model: Only read.
        named: Its tensors under all of their names.
        declared: What its class says.
        tied: What the configuration is to say instead of what it does.
    """
    head, _ = embeddings_of(model)
    if declared.malformed:
        reason = f"save_pretrained raises: _tied_weights_keys of {declared.malformed[0]} is a list, expected a dict"
        return _no_reload(reason, head)
    if (invalid := unsaveable_state(model) or unsaveable_generation(model)) is not None:
        return _no_reload(f"save_pretrained raises: {invalid}", head)
    ignored: set[str] = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    live = {one.name: one.tensor for one in named if one.name not in ignored}
    try:
        file = written(live, declared.by_class or ())
    except Refused as refusal:
        return _no_reload(str(refusal), head)
    size = sum(tensor.numel() * tensor.element_size() for tensor in file.values())
    try:
        model_after = fresh(type(model), model.config, tied)
    except Exception as problem:  # whatever a class raises that needs more than its configuration
        reason = f"from_pretrained raises: {type(model).__name__}(config): {type(problem).__name__}: {problem}"
        return AfterReload(False, None, reason, _same_fate(head, False, reason), (), size)
    try:
        after = read(file, model_after, model.dtype)
    except Refused as refusal:
        return AfterReload(False, None, str(refusal), _same_fate(head, False, str(refusal)), (), size)
    modules = dict(model.named_modules(remove_duplicate=False))
    lost = _Comparison(live, file, after, model_after, modules, model.dtype).lost()
    return _verdict(live, file, after, model_after, lost, size)


def _no_reload(reason: str, head: str | None) -> AfterReload:
    return AfterReload(None, None, reason, _same_fate(head, None, reason))


def _same_fate(head: str | None, survives: bool | None, reason: str) -> tuple[HeadFate, ...]:
    return () if head is None else (HeadFate(head, survives, None, reason),)


def no_save(what: str, of: object = None) -> AfterReload:
    """The fate of what has no `save_pretrained` of transformers'."""
    cls = type(of)
    if not callable(getattr(cls, "save_pretrained", None)):
        return AfterReload(None, None, f"{what} has no save_pretrained")
    if any(base.__module__.partition(".")[0] == "peft" for base in cls.__mro__):
        return AfterReload(None, None, f"{what} writes the adapter alone, without the model's tensors")
    return AfterReload(None, None, f"{what} has a save_pretrained of its own, which is not predicted")


@dataclass(frozen=True)
class _Comparison:
    """A live model and what would come back, name by name."""

    live: Mapping[str, Tensor]
    file: Mapping[str, Tensor]
    after: Read
    model: Fresh
    modules: Mapping[str, nn.Module]
    dtype: Any

    def lost(self) -> tuple[Loss, ...]:
        """What comes back with other numbers, or not at all."""
        replaced = self._replaced()
        lost = [loss for path, module in replaced.items() for loss in self._lost_under(path, module)]
        for name in (*self.live, *(name for name in self.model.shapes if name not in self.live)):
            if not any(name.startswith(f"{path}.") for path in replaced):
                loss = self._loss(name)
                lost += [] if loss is None else [loss]
        return (*lost, *changed_settings(self.modules, self.model.modules, skip=tuple(replaced)))

    def _replaced(self) -> dict[str, nn.Module]:
        """The outermost live modules that compute otherwise than those the class builds in their place."""
        found: dict[str, nn.Module] = {}
        for path, module in self.modules.items():
            other = self.model.modules.get(path)
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if path and not inside and other is not None and not _same_code(module, other):
                found[path] = module
        return found

    def _lost_under(self, path: str, module: nn.Module) -> list[Loss]:
        other = type(self.model.modules[path]).__name__
        names = [name for name in self.live if name.startswith(f"{path}.")] or [f"{path}.weight"]
        gone = f"is lost: the class builds a {other} in the place of this {type(module).__name__}"
        linear, weight = plain_linear(module), f"{path}.weight"
        if linear is not None and other == "Linear" and weight in self.after.origin:
            source = self.after.origin[weight]
            if source is None:
                gone += ", with random numbers"
            elif equal(linear.weight, self.file[source]) and _adds_nothing(linear):
                return []
            elif weight in self.after.ties:
                gone += f", tied to {self.after.ties[weight]}"
        return [Loss(name, "replaced", gone) for name in names]

    def _loss(self, name: str) -> Loss | None:
        """What goes wrong with a name; None if nothing does."""
        if name not in self.after.origin:
            linear = plain_linear(self.modules.get(name.removesuffix(".bias"))) if name.endswith(".bias") else None
            if linear is not None and _adds_nothing(linear):
                return None
            return Loss(name, "dropped", "is written, but the class has no such name, so that it is dropped")
        source = self.after.origin[name]
        if source is None:
            return Loss(name, "random", "is not in the file, so that it is drawn at random")
        if name not in self.live:
            return None  # a name that the class has besides, with numbers from the file
        before, now = self.live[name], self.file[source]
        if before.is_floating_point() and before.dtype != self.dtype:
            return Loss(name, "dtype", f"is {before.dtype} and comes back as {self.dtype}")
        if before is now or before.data_ptr() == now.data_ptr() != 0 or equal(before, now):
            return None
        return Loss(name, "overwritten", f"comes back as {source}")


def _same_code(a: nn.Module, b: nn.Module) -> bool:
    return (type(a) is type(b) or type(a).forward is type(b).forward) and "forward" not in vars(a)


_DESCRIBES = frozenset(
    """
    training name_or_path gradient_checkpointing loss_type warnings_issued kernel_config
    in_features out_features num_embeddings embedding_dim
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Attributes of modules that no output of an evaluating model depends on."""


def changed_settings(
    live: Mapping[str, nn.Module], fresh: Mapping[str, nn.Module], skip: tuple[str, ...] = ()
) -> Iterator[Loss]:
    """What modules keep beside tensors, such as an epsilon or a number of heads, and would be built with otherwise.

    Args:
        live: The modules of a model by path.
        fresh: Those that its class builds from what its configuration would be after a save.
        skip: Paths whose modules are not compared, nor what is in them.
    """
    for path, module in live.items():
        other = fresh.get(path)
        if other is None or any(path == outer or path.startswith(f"{outer}.") for outer in skip):
            continue
        before, after = _settings(module), _settings(other)
        for name in before.keys() & after.keys():
            if not _alike(before[name], after[name]):
                happens = f"is {_said(before[name])} and comes back as {_said(after[name])}"
                yield Loss(f"{path}.{name}" if path else name, "setting", happens)


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


def plain_linear(module: nn.Module | None) -> nn.Linear | None:
    """The `Linear` that a module computes and nothing else, through any number of `Sequential`s around it."""
    while type(module) is nn.Sequential:
        inner = [child for child in module if type(child) is not nn.Identity]
        module = inner[0] if len(inner) == 1 else None
    return module if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward else None


def has_bias(linear: nn.Linear) -> bool:
    """Whether a `Linear` was made with a bias, which its annotation does not let one ask."""
    return linear._parameters.get("bias") is not None


def _adds_nothing(linear: nn.Linear) -> bool:
    """Whether a `Linear` computes the same without its bias."""
    bias = linear._parameters.get("bias")
    return bias is None or (bias.dtype == linear.weight.dtype and not bool(bias.count_nonzero()))


def _verdict(
    live: Mapping[str, Tensor], file: Mapping[str, Tensor], after: Read, model: Fresh, lost: tuple[Loss, ...], size: int
) -> AfterReload:
    heads = [name for name in dict.fromkeys((model.head, *model.ties)) if name is not None]
    tell = _teller(live, file, after, model)
    fates: list[HeadFate] = []
    for name in heads:
        mine = under(name, lost)
        fates.append(HeadFate(name, not mine, name in after.ties or name in after.ties.values(), tell(name, mine)))
    first = next((fate for fate in fates if fate.name == model.head), None)
    elsewhere = tuple(loss for loss in lost if not any(loss in under(head, lost) for head in heads))
    said = [fate.reason for fate in fates] + ([sentence(elsewhere)] if elsewhere else [])
    reason = "; ".join(said) or "every tensor is written and read"
    return AfterReload(not lost, first.tied_after if first else None, reason, tuple(fates), lost, size)


def under(head: str, lost: tuple[Loss, ...]) -> tuple[Loss, ...]:
    """The losses in the module of a head's weight."""
    return tuple(loss for loss in lost if loss.name.startswith(head.rpartition(".")[0] + "."))


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
    return re.sub(r"\bit is\b", "they are", re.sub(r"^is\b|\bcomes\b", lambda verb: _PLURAL[verb[0]], happens))


_PLURAL = {"is": "are", "comes": "come"}


def _teller(
    live: Mapping[str, Tensor], file: Mapping[str, Tensor], after: Read, model: Fresh
) -> Callable[[str, tuple[Loss, ...]], str]:
    def tell(name: str, lost: tuple[Loss, ...]) -> str:
        if lost:
            return sentence(lost)
        source = after.ties.get(name)
        follower = next((target for target, of in after.ties.items() if of == name), None)
        if source is None and follower is not None:
            return f"{name} alone is in the file, and {follower} is tied to it"
        if source is None:
            declared = model.ties.get(name)
            if declared is None:
                return f"{name} is written and read as it is"
            return f"{name} and {declared} are both written; they differ, so both are kept, against the configuration"
        if name in file and source in file:
            return f"{name} and {source} are both written; they are equal, so {name} is tied to it without a word"
        written_as = source if source in file else name
        if name in live and source in live and live[name] is not live[source]:
            return f"two tensors over one memory are written once, as {written_as}, and come back as one"
        return f"{written_as} is written once, and {name} is tied to {source}"

    return tell
