"""The matrix products of a run alone: as fast numerics take them, beside every library here that could take them.

The weights are read as the model stores them, without packed copies. A row is the share that fast numerics reach of
the library that was quickest in the same run at this shape: torch with its own (MKL), by `addmm` and by `linear`, and
oneDNN. NumPy's library cannot take turns with these: its threads go on waiting while the next contender runs. "All of a
run" are the four products of each of twelve blocks and the head, each with weights of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from harness import Call, Samples, Spread, compete, require_equal, rounding
from report import FLOAT32, PROCESSOR, Options, Report, Row, arguments

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.numerics.products import QuickProducts
from pellucid.numerics.quickest import by_onednn

WIDTH, HIDDEN, VOCABULARY, BLOCKS = 768, 3072, 50257, 12
OURS = "pellucid, fast"
LEAST = 0.90


class Matrix(NamedTuple):
    """A weight as it is stored, [I, O] with its bias, or [O, I] for the head, which has none."""

    stored: Tensor
    bias: Tensor | None

    @property
    def weight(self) -> Tensor:
        """[O, I], a view."""
        return self.stored if self.bias is None else self.stored.t()

    @property
    def inputs(self) -> int:
        """Values in a row."""
        return self.weight.shape[1]

    def in_float64(self) -> Matrix:
        """The same numbers."""
        return Matrix(self.stored.double(), None if self.bias is None else self.bias.double())


def fast(x: Tensor, matrix: Matrix) -> Tensor:
    """As a fast run does it."""
    products = QuickProducts()
    return products.linear(x, matrix.stored) if matrix.bias is None else products.affine(x, matrix.stored, matrix.bias)


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """By torch's `linear`."""
    return F.linear(x, matrix.weight, matrix.bias)


def addmm(x: Tensor, matrix: Matrix) -> Tensor:
    """By torch's `addmm`, or `mm` without a bias."""
    weight = matrix.weight.t()
    return torch.mm(x, weight) if matrix.bias is None else torch.addmm(matrix.bias, x, weight)


def onednn(x: Tensor, matrix: Matrix) -> Tensor:
    """By oneDNN, of the weight as it lies."""
    return by_onednn(x, matrix.weight, matrix.bias)


Way = Callable[[Tensor, Matrix], Tensor]
WAYS: dict[str, Way] = {
    OURS: fast, "torch linear": linear, "torch addmm": addmm, "oneDNN": onednn,
}  # fmt: skip


def drawn(inputs: int, outputs: int, *, is_head: bool = False) -> Matrix:
    """Random weights."""
    if is_head:
        return Matrix(torch.randn(outputs, inputs), None)
    return Matrix(torch.randn(inputs, outputs), torch.randn(outputs))


def all_of_a_run(blocks: int) -> list[Matrix]:
    """In the order in which a run reads them."""
    sides = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)]
    return [*(drawn(*pair) for _ in range(blocks) for pair in sides), drawn(WIDTH, VOCABULARY, is_head=True)]


def beside_libraries(report: Report, name: str, rows: int, matrices: list[Matrix], options: Options) -> None:
    """A row: ours beside the quickest of the others."""
    values = {inputs: torch.randn(rows, inputs) for inputs in {matrix.inputs for matrix in matrices}}
    for matrix in matrices[-4:]:
        check(values[matrix.inputs], matrix)

    def run(way: Way) -> Call:
        def call() -> None:
            for matrix in matrices:
                way(values[matrix.inputs], matrix)

        return call

    samples = compete({way: run(call) for way, call in WAYS.items()}, rounds=options.rounds(9, quick=3))
    best = samples.fastest([way for way in WAYS if way != OURS])
    share = Spread.of([a / b for a, b in zip(samples.seconds[best], samples.seconds[OURS], strict=True)])
    report.add(Row(name, f"{rows} rows", share, options.target(LEAST, at_least=True), OURS, best, "share"), samples)
    report.facts.setdefault("GFLOP/s", {})[f"{name}, {rows} rows"] = rates(samples, rows, matrices)


def rates(samples: Samples, rows: int, matrices: list[Matrix]) -> Mapping[str, float]:
    """Of each way, in billions of operations a second."""
    done = sum(2 * rows * matrix.stored.numel() for matrix in matrices)
    return {way: round(done / samples.time(way).median / 1e9, 1) for way in samples.seconds}


def check(x: Tensor, matrix: Matrix) -> None:
    """All ways give the same product, within rounding."""
    found: dict[str, Any] = {way: call(x, matrix) for way, call in WAYS.items()}
    bound = rounding(found[OURS], linear(x.double(), matrix.in_float64()))
    require_equal(found, within=bound, because="libraries add in different orders")


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__, PROCESSOR, FLOAT32)
    report = Report("products", options)
    torch.manual_seed(0)
    single = {
        "768 x 2304": drawn(WIDTH, 3 * WIDTH), "3072 x 768": drawn(HIDDEN, WIDTH), "768 x 3072": drawn(WIDTH, HIDDEN),
        "head": drawn(WIDTH, VOCABULARY, is_head=True),
    }  # fmt: skip
    shapes = [(128, "768 x 2304"), (128, "3072 x 768"), (128, "head"), (512, "768 x 3072"), (16, "768 x 3072")]
    for rows, name in [*shapes, (8, "head"), (1, "head")]:
        if options.wants(name):
            beside_libraries(report, name, rows, [single[name]], options)
    if options.wants("all of a run"):
        matrices = all_of_a_run(2 if options.quick else BLOCKS)
        for rows in (1, 8, 128, 512):
            beside_libraries(report, "all of a run", rows, matrices, options)
    report.finish()


if __name__ == "__main__":
    main()
