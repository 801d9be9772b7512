"""What the course asks for beyond the right numbers: dropout modules, the order of initialisation, the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pellucid.exercises.learner import COARSE, ModuleProbe
from pellucid.exercises.names import copied, own, parameter
from pellucid.exercises.result import Findings, WrongAnswerError, last_line, theirs
from pellucid.exercises.watch import apart
from pellucid.gpt2.formulas import Sizes
from pellucid.numerics.dispatch import DispatchMode

_MAY_MIX = ("index", "copy", "_to_copy", "embedding_renorm")


class _OneDevice(DispatchMode):
    """Notices an operation on tensors of two devices; a single number from the CPU is allowed, as on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
        name = func.__name__.split(".")[0]
        if len({t.device for t in tensors}) > 1 and not any(word in name for word in _MAY_MIX):
            stray = next(t for t in tensors if t.device.type == "cpu")
            self.mixed = f"{name} is given a tensor {list(stray.shape)} on the CPU"
        return func(*args, **(kwargs or {}))


def check_device(found: Findings, module: nn.Module, x: Tensor) -> None:
    """Run on another device (`meta`, which every machine has): tensors that stay behind on the CPU are found."""
    watch = _OneDevice()
    try:
        with torch.no_grad(), watch:
            copied(module).to("meta")(own(module, x).to("meta"))
    except (Exception, SystemExit):  # reported below if the reason was a second device
        pass
    else:
        if watch.mixed is None:
            found.proved.append("every tensor that it creates is on the input's device")
            return
    if watch.mixed is None:
        found.note("the device of created tensors was not checked: it does not run on the meta device")
        return
    raise WrongAnswerError(
        f"a tensor is created on the default device, not on the input's: {watch.mixed}; create it with device=x.device",
        "creating tensors",
        "output",
        "a tensor is on the wrong device",
    )


def check_applied(module: nn.Module, dropouts: Sequence[nn.Dropout], x: Tensor, words: str) -> Tensor:
    """Drop everything at one place, in training, and see that it matters; returns the output without it."""
    every = [one for one in module.modules() if isinstance(one, nn.Dropout)]
    rates = [one.p for one in every]
    try:
        with theirs("dropout", "in training"), torch.no_grad():
            usual = module.eval()(x)
            for one in every:
                one.p = 1.0 if any(one is chosen for chosen in dropouts) else 0.0
            dropped = module.train()(x)
    finally:
        module.eval()
        for one, rate in zip(every, rates, strict=True):
            one.p = rate
    if apart(dropped, usual) <= COARSE:
        raise WrongAnswerError(f"the nn.Dropout {words} is never applied", "dropout", kind=DROPOUT)
    return dropped


def require_dropout(dropouts: Sequence[nn.Dropout], words: str) -> None:
    """See that there is dropout at a place."""
    if not dropouts:
        raise WrongAnswerError(
            f"there is no nn.Dropout {words}; only evaluation is right without", "dropout", kind=DROPOUT
        )


DROPOUT = "dropout is missing, or drops another tensor"


def check_initial_order(found: Findings, probe: ModuleProbe, sizes: Sizes, orders: Sequence[tuple[str, ...]]) -> None:
    """Under one seed, parameters tell in which order the modules were created."""
    with theirs("constructing"):
        torch.manual_seed(7)
        module = probe.build(sizes)
    layers, right = probe.layers(sizes), orders[0]
    values = {path: parameter(module, path).weight.detach() for path in right}
    for order in orders:
        torch.manual_seed(7)
        fresh = {path: layers[path]().get_parameter("weight").detach() for path in order}
        if not all(torch.equal(fresh[path], values[path]) for path in right):
            continue
        if order != right:
            made, asked = (", ".join(f"`{path}`" for path in paths) for paths in (order, right))
            words = f"sub-modules are initialised in the order {made}; the order of use is {asked}"
            raise WrongAnswerError(words, "initialisation", kind="an order is wrong")
        found.proved.append("sub-modules are initialised in the order of use: under one seed, equal to the bit")
        return
    found.note("fresh parameters are not those of torch's default initialisation in the order of use; the numbers "
               "computed are right, but a test that compares fresh models under one seed would not pass")  # fmt: skip


def check_gradient(found: Findings, module: nn.Module, x: Tensor) -> None:
    """Note it where the module cannot be trained, usually because of a change in place."""
    try:
        with torch.enable_grad():
            copied(module)(own(module, x)).sum().backward()
    except (Exception, SystemExit) as error:  # whatever the learner's code raises
        found.note(f"it cannot be trained as it is: {last_line(error)}")
