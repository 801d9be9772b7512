"""A learner's module: built, its parameters found and given telling values, and run where every mistake shows."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises.other_names import Naming, namings
from pellucid.exercises.reference import (
    RIGHT,
    Parameters,
    Produce,
    Stages,
    agrees,
    confirmed,
    first_shows,
    pairs,
    training,
    turned,
)
from pellucid.exercises.result import IN_PLACE, NAMES, NUMBERS, RETURNS, Findings, WrongAnswerError, last_line, theirs
from pellucid.exercises.watch import Marked, Undropped, Watch, apart
from pellucid.gpt2.formulas import Sizes
from pellucid.gpt2.mistake import OTHER_TENSOR, Mistake
from pellucid.gpt2.parts import Parts

EXACT, COARSE = 1e-9, 2e-5
"""Relative differences that rounding stays below in float64, and where something inside runs in float32."""


@dataclass(frozen=True)
class ModuleProbe:
    """One class of the course.

    Attributes:
        name: What the learner calls it.
        build: Sizes -> the learner's module.
        stages: The right computation, whose parts can be replaced.
        shapes: Sizes -> every parameter by the name that the course gives it, with its shape.
        inputs: Sizes -> what to run it on, several shapes.
        axes: Stage -> its axes.
        steps: Stage -> the step that makes it.
        mistakes: What may be wrong.
        dropouts: What may be wrong with dropout.
    """

    name: str
    build: Callable[[Sizes], Any]
    stages: Callable[[Tensor, Parameters, Sizes, Parts], Stages]
    shapes: Callable[[Sizes], Mapping[str, tuple[int, ...]]]
    inputs: Callable[[Sizes], Sequence[Tensor]]
    axes: Callable[[str], str]
    steps: Callable[[str], str]
    mistakes: Sequence[Mistake]
    dropouts: Sequence[Mistake]

    def constructed(self, sizes: Sizes) -> nn.Module:
        """The learner's module, whose parameters have the shapes of the course, and the names or others.

        Raises:
            WrongAnswerError: One of the course's parameters is not there under any name.
        """
        with theirs(f"constructing {self.name}"):
            module = self.build(sizes)
        if not isinstance(module, nn.Module):
            given = type(module).__name__
            raise WrongAnswerError(f"{self.name} is no nn.Module: {given}", f"constructing {self.name}", kind=RETURNS)
        if not self.has_names(module, sizes) and not namings(module, self.shapes(sizes)):
            for name, shape in self.shapes(sizes).items():
                self._check_parameter(module, name, shape)
        self._check_apart(module, sizes)
        return module

    def has_names(self, module: nn.Module, sizes: Sizes) -> bool:
        """Whether every parameter has the course's name and shape."""
        try:
            for name, shape in self.shapes(sizes).items():
                self._check_parameter(module, name, shape)
        except WrongAnswerError:
            return False
        return True

    def _check_parameter(self, module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
        owner, _, kind = name.rpartition(".")
        step = "the parameters"
        try:
            value = parameter(module, name)
        except (AttributeError, IndexError, TypeError, KeyError):
            raise WrongAnswerError(f"{self.name} has no `{owner}` with a {kind}", step, name, NAMES) from None
        if value is None:
            raise WrongAnswerError(f"`{owner}` has no bias; GPT-2's has one", step, name, NAMES)
        if tuple(value.shape) != shape:
            turned = ", which is this transposed" if len(shape) > 1 and tuple(value.shape) == shape[::-1] else ""
            words = f"`{name}` has shape {list(value.shape)}, expected {list(shape)}{turned}"
            raise WrongAnswerError(words, step, name, NAMES)
        if not any(value is one for one in module.parameters()):
            raise WrongAnswerError(
                f"`{name}` is not among the parameters of {self.name}: keep modules in nn.ModuleList or as attributes, "
                "not in a plain list",
                step,
                name,
                "a module is kept where torch does not find it",
            )

    def _check_apart(self, module: nn.Module, sizes: Sizes) -> None:
        """See that no two parameters are one, or lie in one memory."""
        seen: dict[int, tuple[str, Tensor]] = {}
        live = self._live(module, sizes) if self.has_names(module, sizes) else dict(module.named_parameters())
        for name, value in live.items():
            other, first = seen.setdefault(value.untyped_storage().data_ptr(), (name, value))
            if other == name:
                continue
            words = f"`{name}` and `{other}` are one parameter: construct a module for each"
            if first is not value:
                words = (
                    f"`{name}` and `{other}` are two parameters in one memory, and a change of dtype or device parts "
                    f"them: give each its own, or use `{other}` itself in both places"
                )
            raise WrongAnswerError(words, "the parameters", name, "parameters that should differ are one")

    def _naming(self, module: nn.Module, sizes: Sizes) -> Naming | None:
        """Which parameters are which, where names are not the course's: the way that gives the right output, if any."""
        if self.has_names(module, sizes):
            return None
        found = namings(module, self.shapes(sizes))
        if len(found) == 1:
            return found[0]
        x = self.inputs(sizes)[0]
        with torch.no_grad(), contextlib.suppress(Exception, SystemExit):  # whatever the learner's code raises, later
            output = copied(module).eval()(own(module, x).clone())
            for one in found:
                named = {name: value.detach().double() for name, value in one.read(module).items()}
                if apart(output, list(self.stages(x, named, sizes, RIGHT).values())[-1]) <= COARSE:
                    return one
        return found[0]

    def _live(self, module: nn.Module, sizes: Sizes) -> dict[str, Tensor]:
        """The parameters that the course names, and any others."""
        naming = self._naming(module, sizes)
        held = dict(module.named_parameters())
        if naming is None:
            named: dict[str, Tensor] = {name: parameter(module, name) for name in self.shapes(sizes)}
            known = {id(value) for value in named.values()}
            return named | {name: value for name, value in held.items() if id(value) not in known}
        used = {name for source in naming.sources.values() for name in source.names}
        return naming.read(module) | {name: value for name, value in held.items() if name not in used}

    def parameters(self, module: nn.Module, sizes: Sizes) -> dict[str, Tensor]:
        """The parameters that the course names, and any others, in float64."""
        return {name: value.detach().clone().double() for name, value in self._live(module, sizes).items()}

    def note_names(self, found: Findings, module: nn.Module, sizes: Sizes) -> None:
        """Say which layers have other names than the course's, which its tests and later exercises look for."""
        naming = self._naming(module, sizes)
        for told in naming.told() if naming else ():
            found.note(f"names: {told}; what is computed is right, but the course's own tests look for its names")

    def check_values(self, found: Findings, sizes: Sizes) -> nn.Module:
        """Run the learner's module beside the reference; returns it, evaluating, with telling values.

        Raises:
            WrongAnswerError: With the mistake that reproduces the difference, where one does.
        """
        module = self.constructed(sizes).eval()
        spread(module)
        named = self.parameters(module, sizes)
        inputs = list(self.inputs(sizes))

        def produce(parts: Parts) -> Iterator[Stages]:
            return (self.stages(x, named, sizes, parts) for x in inputs)

        watch, outputs = self._run(module, inputs, [list(s.values())[-1].shape for s in produce(RIGHT)])
        if agrees(produce(RIGHT), outputs, EXACT):
            return module
        self._check_repeatable(module, inputs, produce, outputs)
        if watch.coarse and agrees(produce(RIGHT), outputs, COARSE):
            if (mistake := confirmed(self.mistakes, produce, outputs, EXACT)) is None:
                found.note("right to the rounding of float32: something inside does not follow the input's float64")
                return module
            raise self._named(watch, mistake, produce, EXACT)
        raise self._explained(watch, produce, outputs, [*self.mistakes, *self._heads(named, sizes)])

    def check_places(self, found: Findings, sizes: Sizes) -> bool:
        """See in training that the course's tensors are dropped, at the rate given; false where that cannot be seen.

        Raises:
            WrongAnswerError: Another tensor is dropped, or at another rate.
        """
        module = self.constructed(sizes).train()
        spread(module)
        named, inputs = self.parameters(module, sizes), list(self.inputs(sizes))

        def produce(parts: Parts) -> Iterator[Stages]:
            return (self.stages(x, named, sizes, training(parts, sizes)) for x in inputs)

        shapes = [list(s.values())[-1].shape for s in produce(RIGHT)]
        with Marked():
            watch, outputs = self._run(module, inputs, shapes)
            _, again = self._run(module, inputs, shapes)
        tolerance = COARSE if watch.coarse else EXACT
        if agrees(produce(RIGHT), outputs, tolerance):
            return True
        if any(apart(a, b) for a, b in zip(again, outputs, strict=True)):
            found.note("which tensors are dropped was not checked: it draws in another way than torch's dropout")
            return False
        for name, one in module.named_modules():
            if isinstance(one, nn.Dropout):
                check_rate(one, sizes.dropout, f"`{name}`")
        for several in (self.dropouts, pairs(self.dropouts)):
            if (mistake := confirmed(several, produce, outputs, tolerance)) is not None:
                raise self._named(watch, mistake, produce, tolerance)
        words = "in training the output is not that of dropout at the course's places, and no known mistake gives it"
        raise WrongAnswerError(words, "dropout", kind="what is dropped, or how often, is wrong")

    def _explained(
        self, watch: Watch, produce: Produce, outputs: list[Tensor], mistakes: list[Mistake]
    ) -> WrongAnswerError:
        """The wrong answer with the mistake that reproduces it, or with what is observed where none does."""
        stage, line = watch.first_missing(next(produce(RIGHT)), COARSE if watch.coarse else EXACT)
        for tolerance in (EXACT, COARSE) if watch.coarse else (EXACT,):
            for several in (mistakes, pairs(mistakes, _showing_at(stage, mistakes, produce, tolerance))):
                if (mistake := confirmed(several, produce, outputs, tolerance)) is not None:
                    return self._named(watch, mistake, produce, tolerance)
        gap = max(apart(o, list(m.values())[-1]) for o, m in zip(outputs, produce(RIGHT), strict=True))
        what = "the output holds NaN" if any(output.isnan().any() for output in outputs) else \
               f"the output is wrong (relative difference {gap:.2g})"  # fmt: skip
        return WrongAnswerError(
            f"{what}, and none of the known mistakes reproduces it: no cause is confirmed",
            self.steps(stage),
            self.axes(stage),
            NUMBERS,
            line,
        )

    def _named(self, watch: Watch, mistake: Mistake, produce: Produce, tolerance: float) -> WrongAnswerError:
        stage = first_shows(produce, mistake, tolerance) or "output"
        made = next(produce(turned(RIGHT, mistake.changes))).get(stage)
        line = None if made is None else watch.line_of(made, tolerance)
        return WrongAnswerError(mistake.learner, mistake.step, self.axes(stage), mistake.kind, line)

    def _heads(self, named: Parameters, sizes: Sizes) -> list[Mistake]:
        """Unembedding with a parameter that the course does not have."""
        course = self.shapes(sizes)
        extra = [n for n in named if _EMBED in course and n not in course and named[n].shape == named[_EMBED].shape]
        words = "the logits are made with `{}`; the course unembeds with `{}`"
        return [
            Mistake({"head": named[n]}, "", words.format(n, _EMBED), "the unembedding", OTHER_TENSOR) for n in extra
        ]

    def _run(self, module: nn.Module, inputs: list[Tensor], shapes: list[torch.Size]) -> tuple[Watch, list[Tensor]]:
        """Outputs in float64 where the module runs so, and everything computed for the first input."""
        runs = copied(module).double()
        try:
            with torch.no_grad():
                runs(inputs[0].clone())
        except (Exception, SystemExit):  # written for float32 only; a real mistake is raised again below
            runs = module
        watch, outputs = Watch(), []
        for x, shape in zip(inputs, shapes, strict=True):
            given = x.clone() if runs is not module else own(module, x).clone()
            kept = given.clone()
            with theirs(f"running {self.name}", f"given {list(x.shape)}"), torch.no_grad():
                if outputs:
                    output = runs(given)
                else:
                    with watch:
                        output = runs(given)
            outputs.append(self._checked_output(output, shape))
            if not torch.equal(given, kept):
                raise WrongAnswerError(
                    "forward changes its input in place", f"running {self.name}", "the input", IN_PLACE
                )
        watch.coarse |= runs is module
        return watch, outputs

    def _checked_output(self, output: Any, shape: torch.Size) -> Tensor:
        step = f"the output of {self.name}"
        if not isinstance(output, Tensor):
            raise WrongAnswerError(f"forward returns {type(output).__name__}, expected a tensor", step, kind=RETURNS)
        if output.shape != shape:
            words = f"forward returns shape {list(output.shape)}, expected {list(shape)}"
            raise WrongAnswerError(words, step, "output", RETURNS)
        return output.detach().clone()

    def _check_repeatable(
        self, module: nn.Module, inputs: list[Tensor], produce: Produce, outputs: list[Tensor]
    ) -> None:
        _, again = self._run(module, inputs, [o.shape for o in outputs])
        if all(apart(a, b) == 0.0 for a, b in zip(again, outputs, strict=True)):
            return
        with Undropped():
            _, undropped = self._run(module, inputs, [o.shape for o in outputs])
        words = "two evaluating runs differ: something is drawn at random, or kept from one run to the next"
        if agrees(produce(RIGHT), undropped, COARSE):
            words = "dropout is active in evaluation: pass training=self.training, or use nn.Dropout"
        raise WrongAnswerError(words, "dropout", "output")


def _showing_at(stage: str, mistakes: Sequence[Mistake], produce: Produce, tolerance: float) -> list[Mistake]:
    """The mistakes that first show in a stage: one of them is made if the stages before it are right.

    Fused attention shows neither scores nor pattern, so that what first shows in the pattern or z may be meant.
    """
    block, _, kind = stage.rpartition("scores")
    stages = {stage} if kind or not stage.endswith("scores") else {stage, f"{block}pattern", f"{block}z"}
    found: list[Mistake] = []
    for mistake in mistakes:
        with contextlib.suppress(RuntimeError, IndexError, KeyError):  # impossible with these shapes
            if first_shows(produce, mistake, tolerance) in stages:
                found.append(mistake)
    return found


_EMBED = "token_embedding.weight"


def parameter(module: Any, path: str) -> Any:
    """An attribute by its dotted path, numbers being places in a list."""
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, or a wrong answer that says why there is none."""
    with theirs("copying the module"):
        return copy.deepcopy(module)


def own(module: nn.Module, x: Tensor) -> Tensor:
    """An input in the dtype of the module's parameters; ids as they are."""
    dtype = next((value.dtype for value in module.parameters()), x.dtype)
    return x.to(dtype) if x.is_floating_point() else x


def check_rate(dropout: nn.Dropout, given: float, words: str) -> None:
    """See that a dropout has the rate that was given."""
    if dropout.p != given:
        raise WrongAnswerError(
            f"the nn.Dropout {words} has p={dropout.p}, not the dropout={given} given",
            "dropout",
            kind="a number is wrong",
        )


def spread(module: nn.Module) -> None:
    """Values under which every parameter matters and no two mistakes look alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.named_parameters():
            mean, std = (0.0, 0.3) if value.dim() < 2 else (0.0, 1.5 / value.shape[-1] ** 0.5)
            if value.dim() < 2 and name.endswith("weight"):
                mean = 1.0
            if name.endswith("linear1.weight"):  # activations that differ only far from 0 are told apart, too
                std *= 4
            value.copy_(torch.empty(value.shape).normal_(mean, std, generator=generator))


def check_gradient(found: Findings, module: nn.Module, x: Tensor) -> None:
    """Note it where the module cannot be trained, usually because of a change in place."""
    try:
        with torch.enable_grad():
            copied(module)(own(module, x)).sum().backward()
    except (Exception, SystemExit) as error:  # whatever the learner's code raises
        found.note(f"it cannot be trained as it is: {last_line(error)}")
