"""A learner's module: built, its parameters found and given telling values, and run where every mistake shows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.exercises.course import (
    RIGHT,
    Layers,
    Parameters,
    Produce,
    Run,
    Stages,
    axes,
    output_of,
    shapes_of,
    training,
)
from pellucid.exercises.names import Built, Naming, copied, in_float64, own, spread
from pellucid.exercises.result import IN_PLACE, NUMBERS, RETURNS, Findings, WrongAnswerError, odd, theirs
from pellucid.exercises.watch import Marked, Undropped, Watch, apart
from pellucid.gpt2.formulas import Sizes
from pellucid.gpt2.mistake import ADDED, NUMBER, OTHER_TENSOR, Mistake, together
from pellucid.gpt2.parts import Parts

EXACT, COARSE = 1e-9, 2e-5
"""Relative differences that rounding stays below in float64, and where something inside runs in float32."""

Cause = tuple[Mistake, float]
"""A mistake, and the tolerance to which it reproduces what was observed."""

IMPOSSIBLE = (RuntimeError, IndexError, KeyError)
"""What a mistake raises that cannot be made with some shapes."""


@dataclass(frozen=True)
class ModuleProbe:
    """One class of the course."""

    name: str  # what the learner calls it
    build: Callable[[Sizes], Any]  # sizes -> the learner's module
    stages: Callable[[Parameters, Sizes], Run]  # the right computation, whose parts can be replaced
    layers: Callable[[Sizes], Layers]  # sizes -> every layer by the path that the course gives it, with what makes one
    inputs: Callable[[Sizes], Sequence[Tensor]]  # sizes -> what to run it on, several shapes
    steps: Callable[[str], str]  # stage -> the step that makes it
    mistakes: Sequence[Mistake]  # what may be wrong
    dropouts: Sequence[Mistake]  # what may be wrong with dropout

    def constructed(self, sizes: Sizes) -> Built:
        """The learner's module, whose parameters have the shapes of the course, and the names or others."""
        with theirs(f"constructing {self.name}"):
            module = self.build(sizes)
        if not isinstance(module, nn.Module):
            given = type(module).__name__
            raise WrongAnswerError(f"{self.name} is no nn.Module: {given}", f"constructing {self.name}", kind=RETURNS)

        def right(naming: Naming) -> bool:
            x = self.inputs(sizes)[0]
            with torch.no_grad(), contextlib.suppress(Exception, SystemExit):  # whatever the learner's code raises
                named = {name: value.detach().double() for name, value in naming.read(module).items()}
                output = copied(module).eval()(own(module, x).clone())
                return apart(output, output_of(self.stages(named, sizes)(x, RIGHT))) <= COARSE
            return False

        built = Built(self.name, module, shapes_of(self.layers, sizes), right)
        built.require_parameters()
        built.require_apart()
        return built

    def check_values(self, found: Findings, sizes: Sizes) -> Built:
        """Run the learner's module beside the reference; returns it, evaluating, with telling values."""
        built = self.constructed(sizes)
        module = built.module.eval()
        spread(module)
        named, inputs = built.parameters(), list(self.inputs(sizes))
        produce = self._produce(named, sizes, inputs, lambda parts: parts)

        shapes = [output_of(s).shape for s in produce(RIGHT)]
        watch, outputs = self._run(module, inputs, shapes)
        if agrees(produce(RIGHT), outputs, EXACT):
            return built
        self._check_repeatable(module, inputs, produce, outputs)
        if watch.coarse and agrees(produce(RIGHT), outputs, COARSE):
            if (cause := confirmed(self.mistakes, produce, outputs, EXACT)) is None:
                found.note("right to the rounding of float32: something inside does not follow the input's float64")
                return built
            raise self._named(watch, cause, produce)
        tolerance = COARSE if watch.coarse else EXACT
        wrong = next((i for i, gap in enumerate(gaps(produce(RIGHT), outputs)) if gap > tolerance), 0)
        if wrong:  # what is wrong shows in what is computed for this input
            watch, _ = self._run(module, inputs[wrong : wrong + 1], shapes[wrong : wrong + 1])
        raise self._explained(watch, produce, outputs, [*self.mistakes, *_heads(named, built.shapes)], wrong)

    def check_places(self, found: Findings, sizes: Sizes) -> bool:
        """Check in training mode that the course's dropout acts at its rate; return False if that cannot be seen."""
        built = self.constructed(sizes)
        module = built.module.train()
        spread(module)
        named, inputs = built.parameters(), list(self.inputs(sizes))
        produce = self._produce(named, sizes, inputs, lambda parts: training(parts, sizes))

        shapes = [output_of(s).shape for s in produce(RIGHT)]
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
            if isinstance(one, nn.Dropout) and one.p != sizes.dropout:
                words = f"the nn.Dropout `{name}` has p={one.p}, not the dropout={sizes.dropout} given"
                raise WrongAnswerError(words, "dropout", kind=NUMBER)
        every = itertools.chain(self.dropouts, pairs(self.dropouts))
        if (cause := confirmed(every, produce, outputs, tolerance)) is not None:
            raise self._named(watch, cause, produce)
        words = "in training the output is not that of dropout at the course's places, and no known mistake gives it"
        raise WrongAnswerError(words, "dropout", kind="what is dropped, or how often, is wrong")

    def _produce(
        self, named: Parameters, sizes: Sizes, inputs: Sequence[Tensor], mode: Callable[[Parts], Parts]
    ) -> Produce:
        """What gives the stages of every input; those of a right one, which every mistake is held against, are kept."""
        run = self.stages(named, sizes)
        right = [run(x, mode(RIGHT)) for x in inputs]

        def produce(parts: Parts) -> Iterator[Stages]:
            return iter(right) if parts is RIGHT else (run(x, mode(parts)) for x in inputs)

        return produce

    def _explained(
        self, watch: Watch, produce: Produce, outputs: list[Tensor], mistakes: list[Mistake], wrong: int
    ) -> WrongAnswerError:
        """The wrong answer, by the mistake that reproduces it, else by what `watch` saw of the first wrong input."""
        right = next(itertools.islice(produce(RIGHT), wrong, None))
        stage, line = watch.first_missing(right, COARSE if watch.coarse else EXACT)
        if (cause := self._cause(watch, produce, outputs, mistakes, stage, wrong)) is not None:
            return self._named(watch, cause, produce, wrong)
        gap = max(gaps(produce(RIGHT), outputs))
        what = "the output holds NaN" if any(output.isnan().any() for output in outputs) else \
               f"the output is wrong (relative difference {gap:.2g})"  # fmt: skip
        (b, p), (right_b, right_p) = outputs[wrong].shape[:2], outputs[0].shape[:2]
        where = f" with batch {b} and seq {p}, though right with batch {right_b} and seq {right_p}" if wrong else ""
        words = f"{what}{where}, and none of the known mistakes reproduces it: no cause is confirmed"
        return WrongAnswerError(words, self.steps(stage), axes(stage), NUMBERS, line)

    def _cause(
        self, watch: Watch, produce: Produce, outputs: list[Tensor], mistakes: list[Mistake], stage: str, wrong: int
    ) -> Cause | None:
        """The mistake that reproduces the outputs, or two that may be made if a stage is the first that is wrong."""
        tolerances = (EXACT, COARSE) if watch.coarse else (EXACT,)
        one = confirmed(mistakes, produce, outputs, *tolerances)
        if one is not None and one[1] == EXACT:
            return one
        right = next(itertools.islice(produce(RIGHT), wrong, None))
        # Where each mistake shows takes longer to find out than which one it is.
        there = _showing_at(stage, mistakes, produce, tolerances)
        seen = [mistake for mistake in there if _is_seen(watch, mistake, produce, tolerances, wrong)]
        every = pairs(mistakes, there, seen)
        if _FIRST_BLOCK in right and stage != next(iter(right)):
            every = (pair for pair in every if _is_possible(watch, pair, produce, tolerances[-1], wrong))
        two = confirmed(every, produce, outputs, *tolerances)
        return two if one is None or (two is not None and two[1] == EXACT) else one

    def _named(self, watch: Watch, cause: Cause, produce: Produce, watched: int = 0) -> WrongAnswerError:
        mistake, tolerance = cause
        stage = first_shows(produce, mistake, tolerance) or "output"
        made = next(itertools.islice(produce(parts_of(mistake)), watched, None)).get(stage)
        line = None if made is None else watch.line_of(made, tolerance)
        return WrongAnswerError(mistake.learner, mistake.step, axes(stage), mistake.kind, line)

    def _run(self, module: nn.Module, inputs: list[Tensor], shapes: list[torch.Size]) -> tuple[Watch, list[Tensor]]:
        """Outputs in float64 if the module runs so, and everything computed for the first input."""
        runs = in_float64(module, inputs[0].clone())
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
                words = "forward changes its input in place"
                raise WrongAnswerError(words, f"running {self.name}", "the input", IN_PLACE)
        watch.coarse |= runs is module
        return watch, outputs

    def _checked_output(self, output: Any, shape: torch.Size) -> Tensor:
        step = f"the output of {self.name}"
        if not isinstance(output, Tensor):
            way = ": torch.as_tensor(result) makes one of it" if isinstance(output, (np.ndarray, list)) else ""
            words = f"forward returns {type(output).__name__}, expected a tensor{way}"
            raise WrongAnswerError(words, step, kind=RETURNS)
        if output.shape != shape:
            words = f"forward returns shape {list(output.shape)}, expected {list(shape)}"
            raise WrongAnswerError(words, step, "output", RETURNS)
        if what := odd(output):
            raise WrongAnswerError(f"forward returns {what}, expected real numbers on the CPU", step, "output", RETURNS)
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


def _showing_at(
    stage: str, mistakes: Sequence[Mistake], produce: Produce, tolerances: Sequence[float]
) -> list[Mistake]:
    """The mistakes that first show in a stage: one of them is made if the stages before it are right.

    Fused attention shows neither scores nor pattern, so that what first shows in the pattern or z may be meant.
    """
    block, _, kind = stage.rpartition("scores")
    stages = {stage} if kind or not stage.endswith("scores") else {stage, f"{block}pattern", f"{block}z"}
    found: list[Mistake] = []
    for mistake in mistakes:
        with contextlib.suppress(*IMPOSSIBLE):
            if any(first_shows(produce, mistake, tolerance) in stages for tolerance in tolerances):
                found.append(mistake)
    return found


def _is_seen(watch: Watch, mistake: Mistake, produce: Produce, tolerances: Sequence[float], watched: int) -> bool:
    """Whether something that only this mistake computes was computed; else another may show in the same stage."""
    with contextlib.suppress(*IMPOSSIBLE):
        right, made = (next(itertools.islice(produce(parts), watched, None)) for parts in (RIGHT, parts_of(mistake)))
        return any(
            watch.showed(value, tolerance)
            for tolerance in tolerances
            for name, value in made.items()
            if name not in right or apart(value, right[name]) > tolerance
        )
    return False


_FIRST_BLOCK = "block 0: output"


def _is_possible(watch: Watch, pair: Mistake, produce: Produce, tolerance: float, watched: int) -> bool:
    """Whether what leaves the first block with these mistakes was computed: a run of one block refuses most."""
    if "order" in pair.changes:
        return True
    with contextlib.suppress(*IMPOSSIBLE):
        first = replace(parts_of(pair), order=lambda _: range(1))
        made = next(itertools.islice(produce(first), watched, None))
        return watch.showed(made[_FIRST_BLOCK], tolerance)
    return False


_EMBED = "token_embedding.weight"


def _heads(named: Parameters, course: Collection[str]) -> list[Mistake]:
    """Unembedding with parameters that the course does not have: another head, or a bias."""
    if _EMBED not in course:
        return []
    embed, added = named[_EMBED], {name: value for name, value in named.items() if name not in course}
    heads = [
        Mistake({"head": value}, "", f"the logits are made with `{name}`; the course unembeds with `{_EMBED}`",
                "the unembedding", OTHER_TENSOR)
        for name, value in added.items() if value.shape == embed.shape
    ]  # fmt: skip
    biases = [
        Mistake({"logits": lambda x, head, bias=value: x @ head.T + bias}, "",
                f"`{name}` is added to the logits; the course's unembedding has no bias", "the unembedding", ADDED)
        for name, value in added.items() if value.shape == embed.shape[:1]
    ]  # fmt: skip
    return heads + biases


def parts_of(mistake: Mistake) -> Parts:
    """The course's GPT-2 with a mistake."""
    return replace(RIGHT, **mistake.changes)


def confirmed(
    mistakes: Iterable[Mistake], produce: Produce, observed: Sequence[Tensor], *tolerances: float
) -> Cause | None:
    """The first mistake that reproduces what was observed in every probe, to the first of the tolerances if one does.

    Outputs that are NaN as a whole show none.
    """
    spoilt = [output.isnan() for output in observed if output.isnan().any()]
    if spoilt and all(places.all() for places in spoilt):
        return None
    coarse: Cause | None = None
    for mistake in mistakes:
        with contextlib.suppress(*IMPOSSIBLE):
            every = gaps(produce(parts_of(mistake)), observed)
            near = list(itertools.takewhile(lambda gap: gap <= tolerances[-1], every))
            if len(near) == len(observed) and max(near) <= tolerances[0]:
                return mistake, tolerances[0]
            if len(near) == len(observed) and coarse is None:
                coarse = mistake, tolerances[-1]
    return coarse


def gaps(made: Iterator[Stages], observed: Sequence[Tensor]) -> Iterator[float]:
    """How far the output of each probe is from what was observed."""
    return (apart(o, output_of(m)) for o, m in zip(observed, made, strict=True))


def agrees(made: Iterator[Stages], observed: Sequence[Tensor], tolerance: float) -> bool:
    """True if the output of every probe is what was observed."""
    return all(gap <= tolerance for gap in gaps(made, observed))


def pairs(
    mistakes: Sequence[Mistake], both_of: Collection[Mistake] | None = None, one_of: Collection[Mistake] = ()
) -> Iterator[Mistake]:
    """Two mistakes at once that replace different parts: both are among some, or one is among some others."""
    both, one = ({id(mistake) for mistake in of} for of in (mistakes if both_of is None else both_of, one_of))
    for a, b in itertools.combinations(mistakes, 2):
        wanted = id(a) in one or id(b) in one or (id(a) in both and id(b) in both)
        if wanted and not a.changes.keys() & b.changes.keys():
            yield together(a, b)


def first_shows(produce: Produce, mistake: Mistake, tolerance: float) -> str | None:
    """The first stage in which a mistake makes a difference."""
    for right, wrong in zip(produce(RIGHT), produce(parts_of(mistake)), strict=True):
        for name in right:
            if name not in wrong or apart(wrong[name], right[name]) > tolerance:
                return name
    return None
