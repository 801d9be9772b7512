"""Copies to run instead of the caller's models, so that nothing of theirs can change, whatever a forward does.

A copy shares the parameters' memory (or holds them in another dtype) and has modes, hooks and buffers of its own. A
float64 run needs no copy of the parameters: each operation converts what it reads, so that no more than one of them
is in memory twice. At the end are copies of a reference with something changed: units that are zeros, another program's
values.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pellucid.family.json_config import Config
from pellucid.numerics.dense import has_memory
from pellucid.numerics.dispatch import DispatchMode
from pellucid.prove.alignment import Match
from pellucid.run.model import CkptedTransformer
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights.own_file import ALIGNMENT

M = TypeVar("M", bound=nn.Module)


def working_copy(module: M, dtype: torch.dtype | None = None) -> M:
    """An evaluating copy of a module, in another dtype if one is given.

    None keeps the dtypes and shares the parameters' memory, as far as it begins where torch's own memory does.
    """
    memo: dict[int, Any] = {}
    moved = Moved()
    for parameter in module.parameters():
        held = moved.instead(parameter, dtype)
        memo[id(parameter)] = parameter if held is None else nn.Parameter(held, requires_grad=False)
    for child in module.modules():
        if writes_as_it_looks_up(child):
            own = [parameter for parameter in child.parameters(recurse=False) if memo[id(parameter)] is parameter]
            memo |= {id(parameter): nn.Parameter(parameter.detach().clone(), False) for parameter in own}
        for value in vars(child).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # torch refuses to copy these
                memo[id(value)] = value.detach()
    made = deep_copy(module, memo)
    return (made if dtype is None else made.to(dtype)).eval()


def deep_copy(module: M, memo: dict[int, Any]) -> M:
    """`copy.deepcopy`, but several times as fast for what most modules are."""
    children = list(module.modules())
    if all(map(_is_plain, children)):
        memo |= {id(child): type(child).__new__(type(child)) for child in children}
        for child in children:
            vars(memo[id(child)]).update({name: copied(value, memo) for name, value in vars(child).items()})
    return copy.deepcopy(module, memo)


def _is_plain(module: nn.Module) -> bool:
    """Whether a copy of a module is one of its attributes, so that no method of its class has to make it."""
    kind = type(module)
    own = (kind.__reduce_ex__, kind.__reduce__, kind.__getstate__, kind.__setstate__)
    plain = (object.__reduce_ex__, object.__reduce__, nn.Module.__getstate__, nn.Module.__setstate__)
    compiled = vars(module).get("_compiled_call_impl") is not None  # which torch leaves out
    return own == plain and not compiled and not hasattr(kind, "__deepcopy__")


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, but ten times as fast for what most attributes of modules are: constants and modules."""
    if type(value) in UNCHANGING or isinstance(value, (Tokenizer, Config)):
        return value  # a copy of a tokenizer is its whole file written and read
    if type(value) in CONTAINERS and not value:  # several modules may share it, to fill it as they run
        memo.setdefault(id(memo), []).append(value)  # as `copy.deepcopy` does, so that no other gets its id
        return memo.setdefault(id(value), type(value)())
    if type(value) is dict and all(type(name) is str and _is_known(one, memo) for name, one in value.items()):
        return memo.setdefault(id(value), {name: memo.get(id(one)) for name, one in value.items()})
    return copy.deepcopy(value, memo)


def _is_known(value: Any, memo: dict[int, Any]) -> bool:
    """Whether a member of a dict has its copy, as modules and parameters have, or needs none."""
    return value is None or id(value) in memo


UNCHANGING = frozenset({bool, int, float, str, type(None)})
"""Types of which a value is its own copy."""

CONTAINERS = frozenset({dict, list, tuple, set, OrderedDict})
"""Types of which an empty value is copied by making another."""


class Moved:
    """Tensors in memory that begins on a 64-byte boundary, as torch's own does; ties stay ties.

    torch's products of a single row have other last bits where a matrix begins elsewhere, as in a file that is mapped.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}

    def instead(self, parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """What stands in the place of a parameter, in this dtype or if it lies well; None if it may stay.

        Of the same memory, the same copy.
        """
        if dtype is not None and parameter.is_floating_point() and parameter.dtype != dtype:
            return parameter.detach().to(dtype)
        if not has_memory(parameter) or parameter.data_ptr() % ALIGNMENT == 0:
            return None
        place = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype)
        if place not in self._made:
            self._made[place] = parameter.detach().clone()
        return self._made[place]


def is_scripted(module: nn.Module) -> bool:
    """Whether a module is TorchScript, whose state is out of Python's reach and on which no hook can look."""
    return isinstance(module, torch.jit.ScriptModule)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` stands between a module and its caller."""
    compiler: Any = sys.modules.get("torch._dynamo")
    if compiler is None:
        return False
    return isinstance(module, compiler.OptimizedModule) or vars(module).get("_compiled_call_impl") is not None


def writes_as_it_looks_up(module: nn.Module) -> bool:
    """Whether a module is an embedding that shortens the rows of its table as it reads them."""
    return vars(module).get("max_norm") is not None


def own_parameters(module: nn.Module, names: Collection[str], dtype: torch.dtype | None = None) -> None:
    """Give a working copy its own memory of these parameters, under all of their names, so it can be written to."""
    named = dict(module.named_parameters(remove_duplicate=False))
    made = {
        id(named[name]): nn.Parameter(named[name].detach().clone().to(dtype or named[name].dtype), requires_grad=False)
        for name in names
        if name in named
    }
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in made:
                child.register_parameter(name, made[id(parameter)])


def parameter_dtypes(module: nn.Module) -> set[torch.dtype]:
    """The floating dtypes of a module's parameters."""
    return {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}


def seed(number: int) -> None:
    """Seed torch's generators; `torch.manual_seed` also notes the whole stack for devices that nobody has asked for."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def cuda_devices(module: nn.Module) -> list[torch.device]:
    """Where on CUDA a module's parameters are: nowhere, without a look at each, if nobody has begun to use it."""
    if not torch.cuda.is_initialized():
        return []
    return list({parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"})


@contextmanager
def quietly(module: nn.Module, *, double: bool = False, dropout: bool = True) -> Generator[None]:
    """Run without gradients and without moving any random state; with `double`, all arithmetic is float64.

    A program that writes `.float()`, `dtype=torch.float32`, the dtype of its own weights or a bare `torch.tensor(0.5)`
    means full precision; in a float64 run that is float64, else the run could not tell rounding from error.
    """
    default = torch.get_default_dtype()
    narrow = frozenset({torch.float32, *parameter_dtypes(module)} - {torch.float64}) if double else frozenset()
    with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(module)):
        seed(0)
        try:
            if double:
                torch.set_default_dtype(torch.float64)
            with _Rewritten(narrow, dropout=dropout) if narrow or not dropout else nullcontext():
                yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def undisturbed(module: nn.Module, *, double: bool = False) -> Generator[None]:
    """Run without moving any random state, and without anything that a program could notice.

    With `double`, whose parameters and buffers are expected to be float64, the dtype that operations are asked for is
    changed below Python: a mode in Python would switch off torch's fused paths.
    """
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=cuda_devices(module)):
        seed(0)
        try:
            if double:
                torch.set_default_dtype(torch.float64)
            with _Widened() if double and not any(map(is_compiled, module.modules())) else nullcontext():
                yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def eagerly() -> Generator[None]:
    """Run what `torch.compile` wraps without compiling it: hooks inside would compile it again for each run."""
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        yield


class _Widened(DispatchMode):
    """Operations that are asked for float32 give float64, and read float32 as float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if _is_view_or_in_place(func):
            return func(*args, **given)
        return func(*_wide(args, _SINGLE), **_wide(given, _SINGLE))


_SINGLE = frozenset({torch.float32})


@functools.cache  # torch makes `_schema` anew whenever it is read, which takes longer than most operations
def _is_view_or_in_place(operation: Any) -> bool:
    return any(argument.alias_info is not None for argument in operation._schema.arguments)


def _wide(value: Any, narrow: frozenset[torch.dtype]) -> Any:
    """Tensors of these dtypes, and the dtypes themselves, as float64."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in narrow else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in narrow else value
    if type(value) in (tuple, list):
        return type(value)(_wide(item, narrow) for item in value)
    if type(value) is dict:
        return {key: _wide(item, narrow) for key, item in value.items()}
    return value


_VIEWS = frozenset(
    """
    __get__ __len__ t transpose swapaxes swapdims permute movedim moveaxis view view_as reshape flatten unflatten ravel
    __getitem__ __iter__ unbind split chunk tensor_split select narrow unsqueeze squeeze expand expand_as detach size
    dim ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex data_ptr
    untyped_storage element_size get_device is_inference
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Functions that compute nothing: what they give is converted when something reads it."""

_DROPOUTS = (F.dropout, torch.dropout, F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d)

_LOOKUPS = (F.embedding, torch.embedding)
"""Functions that read a few rows of a large tensor: only those are converted."""


_CASTS = {
    torch.Tensor.float: torch.float32, torch.Tensor.half: torch.float16, torch.Tensor.bfloat16: torch.bfloat16
}  # fmt: skip


class _Rewritten(TorchFunctionMode):
    """Changes what a program asks torch for."""

    def __init__(self, narrow: frozenset[torch.dtype], *, dropout: bool) -> None:
        super().__init__()
        self.narrow = narrow  # floating dtypes that are float64 instead, in tensors and where a dtype is asked for
        self.dropout = dropout  # whether dropout stays on

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not self.dropout and func in _DROPOUTS:
            return args[0] if args else given["input"]
        if not self.dropout and func is F.scaled_dot_product_attention:
            args, given = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, given | {"dropout_p": 0.0}
            given = {name: value for name, value in given.items() if name != "dropout_p" or len(args) <= 4}
        if not self.narrow or getattr(func, "__name__", "") in _VIEWS:
            return func(*args, **given)
        if func in _LOOKUPS:
            return func(*args, **given).double()
        func = torch.Tensor.double if _CASTS.get(func) in self.narrow else func
        return func(*_wide(args, self.narrow), **_wide(given, self.narrow))


def without_units(model: CkptedTransformer, units: list[str]) -> CkptedTransformer:
    """A working copy, in which these units become zeros."""
    own_parameters(model, [model.schema.parameter(unit).stored_in for unit in units])
    with torch.no_grad():
        for unit in units:
            model.parameter(unit).zero_()
    return model


def with_their_values(
    model: CkptedTransformer, matches: list[Match], others: Mapping[str, Tensor]
) -> CkptedTransformer:
    """A working copy of a model in which the units of these matches have the other program's values."""
    made = working_copy(model)
    own_parameters(made, [model.schema.parameter(unit).stored_in for match in matches for unit in match.group.units])
    for match in matches:
        undone = match.transform.undo(others[match.name].detach(), match.group, match.comparison.shape)
        for unit, part in match.group.split(undone).items():
            with torch.no_grad():
                target = match.group.of_head(made.parameter(unit))
                target[tuple(map(slice, part.shape))].copy_(part)  # of a table, perhaps its first rows
    return made
