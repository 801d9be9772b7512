"""A model as named values, read by torch's own hooks.

A free run records what the program computes. A forced run records each value and then replaces it by the
reference's, so that every later value shows the program's own error there and nothing inherited.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pellucid.numerics.products import is_batched
from pellucid.prove.calling import TURNED, Call, calls, guesses, is_headless, own, read_answer, working_call
from pellucid.prove.copies import eagerly, is_scripted, quietly, seed, undisturbed
from pellucid.prove.lending import Loan
from pellucid.prove.points import LOGITS, ModuleSite
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import without_pads

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Conditions:
    """How a program is run."""

    double: bool = False  # float32 that the program asks for is float64
    dropout: bool = True  # whether dropout that evaluation does not switch off stays on
    seed: int = 0  # the seed of torch's generator, for a program that draws random numbers
    # relative size of random errors that are put on each value of a model of ours, to see what rounding does
    noise: float = 0.0


PLAIN, DOUBLE = Conditions(), Conditions(double=True)


class WatchedModel(Protocol):
    """A model as named values."""

    def run(self, ids: Tensor, forced: Values | None = None, conditions: Conditions = ...) -> dict[str, Tensor]:
        """The values of the points that it shows, and "logits" [B, P, V]; those in `forced` are replaced."""
        ...


@dataclass(frozen=True)
class Glass:
    """A `CkptedTransformer`, whose checkpoints are all shown."""

    model: CkptedTransformer

    def run(
        self, ids: Tensor, forced: Values | None = None, conditions: Conditions = Conditions()
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(conditions.seed)
        beside = {point.name for point in self.model.schema.points if point.computed == "when watched"}
        tap = _ForcingTap({}, forced or {}, beside, conditions.noise, generator)
        with quietly(self.model, double=conditions.double):
            logits = self.model(without_pads(ids.to(self.model.device)), tap)
        return {**tap.values, LOGITS: logits}

    def logits(self, ids: Tensor, *, double: bool = False) -> Tensor:
        """The logits alone, which are the same to the bit."""
        with quietly(self.model, double=double):
            return self.model(without_pads(ids.to(self.model.device)))


@dataclass(frozen=True)
class _ForcingTap:
    """Keeps every value and puts the forced ones in their place, but for those that are computed beside the fast path.

    Replacing one of these would change the path.
    """

    values: dict[str, Tensor]
    forced: Values
    beside: Collection[str]
    noise: float
    generator: torch.Generator

    def wants(self, name: str) -> bool:
        return True

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.values[name] = value.detach().clone()
        if name in self.beside:
            return value
        if name in self.forced:
            return self.forced[name].to(value)
        if self.noise:
            drawn = torch.randn(value.shape, dtype=value.dtype, generator=self.generator)  # on the CPU, on any device
            return value * (1 + self.noise * drawn.to(value.device))
        return value


@dataclass
class Program:
    """A module that can be run freely or forced, or without any instrument."""

    loan: Loan  # a loan of anything that maps ids [B, P] to logits
    sites: Sequence[ModuleSite]  # where it shows what
    head: Tensor  # [V, D], what a program without a head is multiplied with
    # what its outputs were like, in words, in the order in which it was noticed
    remarks: dict[str, None] = field(default_factory=dict)
    call: Call | None = None  # how it wants to be called; found at the first run
    threaded: bool = False  # whether it computes in other threads, where what widens operations is not in force
    writes_into_ids: bool = False  # whether a run changed the ids that it was given
    turned: bool = False  # whether it is given ids [P, B]

    def run(
        self, ids: Tensor, forced: Values | None = None, conditions: Conditions = Conditions()
    ) -> dict[str, Tensor]:
        recorder = _Recorder(tuple(ids.shape), forced or {}, self.turned)
        logits = self._logits(self._watched(recorder, ids, conditions), ids)
        narrow = conditions.double and logits.dtype == torch.float32
        if (recorder.elsewhere or narrow) and not self.threaded:
            self.threaded = True
            if conditions.double:
                return self.run(ids, forced, conditions)
        return {**recorder.values(), LOGITS: logits}

    def until(self, point: str, ids: Tensor, conditions: Conditions = Conditions()) -> Tensor | None:
        """The value of a point, from a run that ends there; None if nothing shows it."""
        recorder = _Recorder(tuple(ids.shape), {}, self.turned, point)
        with contextlib.suppress(_EndedError):
            self._watched(recorder, ids, conditions)
        return recorder.values().get(point)

    def _watched(self, recorder: _Recorder, ids: Tensor, conditions: Conditions) -> Any:
        """Run with a recorder at every site, and give what the program gives."""
        loan = self.loan.doubled() if conditions.double and self.threaded else self.loan
        with loan.taken(double=conditions.double) as module, torch.no_grad(), eagerly():
            named = dict(module.named_modules())
            for number, site in enumerate(self.sites):
                recorder.watch(number, site, named[site.module])
            with quietly(module, double=conditions.double, dropout=conditions.dropout):
                seed(conditions.seed)
                return self._output(module, ids)

    def plain(
        self, ids: Tensor, *, double: bool = False, gradients: bool = False, evaluating: bool = True, number: int = 0
    ) -> Tensor:
        """The logits of a run on ids [B, P] without any instrument; `number` is the seed of torch's generator.

        With `double`, parameters and buffers are float64 copies. Unless it is `evaluating`, it is in the modes in which
        it was given.
        """
        return self.in_a_row([ids], double=double, gradients=gradients, evaluating=evaluating, number=number)[0]

    def in_a_row(
        self,
        batches: Sequence[Tensor],
        *,
        double: bool = False,
        gradients: bool = False,
        evaluating: bool = True,
        number: int = 0,
    ) -> list[Tensor]:
        """As `plain`, the logits of several runs, each on what the one before left in the program."""
        loan = self.loan.doubled() if double else self.loan
        given = {child: child.training for child in loan.module.modules()} if not evaluating else {}
        with loan.taken(double=double) as module, undisturbed(module, double=double), torch.set_grad_enabled(gradients):
            for child, training in given.items():
                child.training = training
            seed(number)
            return [self._logits(self._output(module, ids), ids) for ids in batches]

    def failure(self, ids: Tensor, error: Exception) -> str:
        """What a run raises, and in which module; `error` itself if a run with hooks raises nothing."""
        entered: list[str] = []

        def leaving(*_: Any) -> None:
            entered.pop()

        with self.loan.taken() as module, torch.no_grad(), eagerly(), undisturbed(module):
            call, ids = self.call or next(calls(module, turned=self.turned))[0], own(self._taken_by(module, ids))
            for path, child in module.named_modules():
                if not is_scripted(child):
                    child.register_forward_pre_hook(lambda *_, path=path: entered.append(path))
                    child.register_forward_hook(leaving)
            try:
                call(module, ids)
            except Exception as again:  # whatever a foreign forward raises
                error = again
        where = f"at {entered[-1]}: " if entered and entered[-1] else ""
        first = str(error).splitlines()[0] if str(error) else ""
        return f"{where}{type(error).__name__}: {first}{guesses(self.loan.module)}"

    def _output(self, module: nn.Module, ids: Tensor) -> Any:
        taken = self._taken_by(module, ids)
        if self.call is None:
            self.call, words, output = working_call(module, taken, turned=self.turned)
            self.remarks |= {words: None} if words else {}
            if 1 < ids.size(0) == ids.size(1):
                with contextlib.suppress(Exception):  # whatever a foreign forward raises: it may take one shape
                    one = ids[:1]
                    self._logits(self.call(module, own(self._taken_by(module, one))), one)  # a remark says its axes
            return output
        given = own(taken)
        output = self.call(module, given)
        self.writes_into_ids |= not torch.equal(given, taken)
        return output

    def _taken_by(self, module: nn.Module, ids: Tensor) -> Tensor:
        """Ids where a module is, in its order of axes."""
        places = (parameter.device for parameter in module.parameters() if not parameter.is_meta)
        return (ids.T.contiguous() if self.turned else ids).to(next(places, ids.device))

    def _logits(self, output: Any, ids: Tensor) -> Tensor:
        if isinstance(self.loan.module, CkptedTransformer):  # all of its vocabulary: it says how long that is
            return output.detach().clone()
        b, p = ids.shape
        turned = TURNED in self.remarks or (self.turned and b != p)  # square ids do not show it
        answer = read_answer(output, (b, p), self.head, headless=is_headless(self.loan.module), turned=turned)
        self.remarks |= dict.fromkeys(answer.remarks)
        return answer.values.detach().clone()


class _EndedError(BaseException):
    """Ends a run; no `Exception`, which a foreign forward may catch."""


class _Recorder:
    """Hooks that keep what each site shows, and put the reference's value in its place if there is one."""

    def __init__(self, shape: tuple[int, ...], forced: Values, turned: bool, last: str = "") -> None:
        self.shape, self.turned = shape, turned
        self.forced = forced
        self.last = last
        self.seen: dict[int, list[dict[str, Tensor]]] = {}
        self.sites: dict[int, ModuleSite] = {}
        self.placed: set[tuple[str, tuple[int, int] | None]] = set()
        self.home, self.elsewhere = threading.get_ident(), False

    def watch(self, number: int, site: ModuleSite, module: nn.Module) -> None:
        if self.last and self.last not in site.points:
            return
        self.sites[number] = site

        def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._pass(number, site, args[0]), *args[1:]), kwargs
            first = next(iter(kwargs), None)
            return (args, kwargs | {first: self._pass(number, site, kwargs[first])}) if first else None

        def leaving(_: nn.Module, args: Any, out: Any) -> Any:
            return _with_first(out, lambda value: self._pass(number, site, value))

        if site.entering:
            module.register_forward_pre_hook(entering, with_kwargs=True)
        else:
            module.register_forward_hook(leaving)

    def _pass(self, number: int, site: ModuleSite, value: Any) -> Any:
        self.elsewhere |= threading.get_ident() != self.home
        calls = self.seen.setdefault(number, [])
        readable = isinstance(value, Tensor) and not is_batched(value)  # under vmap, all rows run at once
        rows = _turned(value, self.shape) if readable and self.turned else value
        shown = _as_rows(rows, self.shape) if readable else None
        own = {} if shown is None else {p: v.detach().clone() for p, v in site.read(shown).items()}
        # a value that was put there is not its own
        calls.append({p: v for p, v in own.items() if (p, site.head) not in self.placed})
        if self.last in own:
            raise _EndedError
        given = {point: self.forced[point].to(held) for point, held in own.items() if point in self.forced}
        if not given or (site.head is not None and len(given) < len(site.points)):
            return value  # of one head alone, what is its own cannot be written among the others
        self.placed |= {(point, site.head) for point in given}
        made = _like_rows(site.write({**own, **given}), rows, self.shape)
        if self.turned:
            made = (made.transpose(0, 1) if made.dim() > 2 else made).reshape(value.shape).contiguous()
        return made

    def values(self) -> dict[str, Tensor]:
        """Point -> value, from the sites that fired once with a value that can be read; heads put together."""
        values: dict[str, Tensor] = {}
        pieces: dict[tuple[str, int], dict[int, Tensor]] = {}
        for number in sorted(self.seen):
            site, calls = self.sites[number], self.seen[number]
            for point, value in calls[0].items() if len(calls) == 1 else ():
                if site.head is None:
                    values.setdefault(point, value)
                else:
                    head, of = site.head
                    pieces.setdefault((point, of), {})[head] = value
        for (point, of), heads in pieces.items():
            if len(heads) == of:
                values.setdefault(point, torch.stack([heads[h] for h in range(of)], 2))
        return values


def _with_first(out: Any, change: Callable[[Any], Any]) -> Any:
    """An output whose first tensor is changed: a tensor, a tuple, a list or a mapping."""
    if isinstance(out, Tensor):
        return change(out)
    if isinstance(out, tuple) and out:
        items = (change(out[0]), *out[1:])
        return type(out)(*items) if hasattr(out, "_fields") else items
    if isinstance(out, list) and out:
        return [change(out[0]), *out[1:]]
    if isinstance(out, Mapping) and out:
        made: Any = copy.copy(out)  # of its own class, such as transformers' outputs
        first = next(iter(made))
        made[first] = change(made[first])
        return made
    return out


def _as_rows(value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A program's tensor as [B, P, N]; None if its axes are others."""
    b, p = shape
    given = tuple(value.shape[:-1])
    if given == (b, p):
        return value
    if given == (p, b):
        return value.transpose(0, 1)
    if given == (b * p,):
        return value.view(b, p, -1) if value.is_contiguous() else value.reshape(b, p, -1)
    if given[:2] == (b, p) and value.dim() == 4:  # heads are an axis of their own
        return value.flatten(2)
    if given in ((p,), (1, p)):
        return value.expand(b, p, -1)
    return None


def _turned(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a program whose texts are columns, [P, B, ...] or [P * B, N], with batch rows first."""
    b, p = shape
    value = value.unflatten(0, (p, b)) if value.dim() == 2 and len(value) == b * p else value
    return value.transpose(0, 1) if value.dim() > 2 else value


def _like_rows(rows: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B, P, N] in the axes of a program's tensor, always as a tensor of its own."""
    b, p = shape
    given = tuple(value.shape[:-1])
    if given[:2] == (b, p) or given == (b * p,):
        made = rows.reshape(value.shape)
    elif given == (p, b):
        made = rows.transpose(0, 1)
    else:
        made = rows[0] if len(given) == 1 else rows[:1]
    return made.to(value).clone(memory_format=torch.contiguous_format)
