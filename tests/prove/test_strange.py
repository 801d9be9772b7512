"""Parameters and modules of every strange kind end in a verdict, or in an error of ours."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Any

import pytest
import torch
from rights import RIGHTS, Split
from torch import Tensor, nn

import pellucid as pl
import support
from pellucid.numerics.dense import filled

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


def with_weight(change: Callable[[Tensor], Any]) -> Callable[[pl.CkptedTransformer], Any]:
    """A right program, one of whose matrices is kept in another way."""

    def build(model: pl.CkptedTransformer) -> Any:
        made = RIGHTS["course"](model)
        linear = made.blocks[0].linear1
        linear.weight = nn.Parameter(change(linear.weight.detach()))
        return made

    return build


def beside(make: Callable[[], Any], *, buffer: bool = False) -> Callable[[pl.CkptedTransformer], Any]:
    """A right program with a tensor of its own that it does not use."""

    def build(model: pl.CkptedTransformer) -> Any:
        made = RIGHTS["course"](model)
        if buffer:
            made.register_buffer("extra", make())
        else:
            made.extra = nn.Parameter(make(), requires_grad=False)
        return made

    return build


class Subclass(torch.Tensor):
    pass


class Packed(torch.Tensor):
    """Eighths as whole numbers, in a tensor of their own, as torchao keeps quantized weights."""

    @staticmethod
    def __new__(cls, whole: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32)

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    def __tensor_flatten__(self) -> Any:
        return ["whole"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> Any:
        return Packed(inner["whole"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].whole)
        raise NotImplementedError(func)

    def dequantize(self) -> Tensor:
        return self.whole / 8.0

    @classmethod
    def of(cls, tensor: Tensor) -> Any:
        return cls((8 * tensor).to(torch.int8))


def test_packed_weights_are_read_by_what_they_stand_for_or_refused_by_name() -> None:
    eighths = torch.tensor([[1.0, 0.5, 0.25]])
    found = filled(Packed.of(eighths))
    assert found is not None
    assert torch.equal(found, eighths)
    model = nn.Linear(3, 1)
    model.weight = nn.Parameter(Packed.of(eighths), requires_grad=False)
    for door in (pl.audit_ties, lambda model: pl.load(model.state_dict(), config=pl.TransformerConfig(**SMALL))):
        with pytest.raises(pl.WeightsError) as caught:
            door(model)
        assert caught.value.code == "tensor-not-dense"


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.randn(2), torch.randn(3)])


KEPT: dict[str, tuple[Callable[[pl.CkptedTransformer], Any], set[str]]] = {
    "a sparse matrix": (with_weight(lambda w: w.to_sparse()), {"equivalent"}),
    "not contiguous": (with_weight(lambda w: w.t().contiguous().t()), {"equivalent"}),
    "a view of more": (with_weight(lambda w: torch.cat([w, w])[: len(w)]), {"equivalent"}),
    "a subclass": (with_weight(lambda w: w.as_subclass(Subclass)), {"equivalent"}),
    "expanded": (beside(lambda: torch.ones(1).expand(4, 5)), {"equivalent"}),
    "overlapping": (beside(lambda: torch.arange(6.0).as_strided((3, 4), (1, 1))), {"equivalent"}),
    "without size": (beside(lambda: torch.zeros(0, 4)), {"equivalent"}),
    "a single value": (beside(lambda: torch.tensor(3.0)), {"equivalent"}),
    "complex": (beside(lambda: torch.randn(3, 4, dtype=torch.complex128)), {"equivalent"}),
    "of eight bits": (beside(lambda: torch.randn(4, 4).to(torch.float8_e4m3fn)), {"equivalent"}),
    "a sparse buffer": (beside(lambda: torch.eye(4).to_sparse(), buffer=True), {"equivalent"}),
    "a quantized buffer": (
        beside(lambda: torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8), buffer=True), {"equivalent"}
    ),
    "of several sizes": (beside(nested), {"inconclusive"}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quantize_per_tensor|nested tensors).*:UserWarning")
def test_however_a_parameter_is_kept(name: str, small: pl.CkptedTransformer) -> None:
    build, verdicts = KEPT[name]
    report = pl.compare(small, build(small), IDS)
    assert report.verdict in verdicts, report
    if name == "a sparse matrix":
        assert report.sensitivity["mlp.W_in"] is not None


def test_a_sparse_matrix_that_differs(small: pl.CkptedTransformer) -> None:
    found = pl.compare(small, with_weight(lambda w: (w * 1.01).to_sparse())(small), IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.0.mlp.W_in"


@pytest.mark.filterwarnings("ignore:.*(torch.ao.quantization|quantize).*:DeprecationWarning")
def test_layers_of_whole_numbers_are_different(small: pl.CkptedTransformer) -> None:
    """Read by what their whole numbers stand for."""
    made = torch.ao.quantization.quantize_dynamic(RIGHTS["course"](small), {nn.Linear}, dtype=torch.qint8)
    report = pl.compare(small, made, IDS)
    assert report.verdict == "different"
    assert "quantized Linear" in " ".join(report.notes)
    changes = report.distance.parameters
    assert changes
    assert max(changes.values()) < 0.05
    assert report.sensitivity == {}


class Functional(nn.Module):
    """Weights in a plain dict, as in programs that are functions of their parameters."""

    def __init__(self, model: pl.CkptedTransformer, change: float = 0.0) -> None:
        super().__init__()
        program = RIGHTS["course"](model)
        self.weights = {name: value.detach() + change for name, value in program.named_parameters()}
        self.settings = types.SimpleNamespace(program=[program])

    def forward(self, ids: Tensor) -> Tensor:
        return torch.func.functional_call(self.settings.program[0], self.weights, (ids,))


class Listed(nn.Module):
    """A program in a list, where torch does not look for modules."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.programs = [RIGHTS["course"](model)]

    def forward(self, ids: Tensor) -> Tensor:
        return self.programs[0](ids)


@dataclass(slots=True)
class Slots:
    program: list[nn.Module]


@dataclass
class Beside:
    model: InitVar[Any]

    def __post_init__(self, model: Any) -> None:
        self.program = [model]


class Slotted(nn.Module):
    """A program in an object without a `__dict__`, or in one beside its fields."""

    def __init__(self, model: pl.CkptedTransformer, *, beside: bool = False) -> None:
        super().__init__()
        program = RIGHTS["course"](model)
        self.held = Beside(program) if beside else Slots([program])

    def forward(self, ids: Tensor) -> Tensor:
        return self.held.program[0](ids)


def test_weights_that_torch_does_not_know_of(small: pl.CkptedTransformer) -> None:
    for program in (Functional(small), Listed(small), Slotted(small), Slotted(small, beside=True)):
        report = pl.compare(small, program, IDS)
        assert report.verdict == "equivalent", report
        assert "torch does not know" in " ".join(report.notes)
        assert report.alignment.complete
    found = pl.compare(small, Functional(small, change=1e-3), IDS)
    assert found.verdict == "different"
    assert found.first_divergence is not None
    assert found.first_divergence.what == "parameter"


@pytest.mark.parametrize("build", support.few_of([Functional, Listed], Functional))
def test_weights_that_torch_does_not_know_of_can_be_moved(build: Any, small: pl.CkptedTransformer) -> None:
    sensitivity = pl.compare(small, build(small), IDS).sensitivity
    assert min(value or 1.0 for value in sensitivity.values()) < 1e-4
    assert [kind for kind, size in sensitivity.items() if size is None] == ["attn.b_K"]


class Around(nn.Module):
    """What other people put around a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Any:
        return self.inner(ids)


class Handing(Around):
    """Attributes that it does not have are everything and nothing."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None


class Raising(Around):
    """Attributes that raise something else than AttributeError."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise KeyError(name) from None

    @property
    def config(self) -> Any:
        raise RuntimeError("not yet")

    @property
    def eps(self) -> float:
        raise RuntimeError("not yet")


class Stateless(Around):
    """A state dict of its own."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {"version": 3}

    def get_extra_state(self) -> Any:
        return {"version": 3}


class Fixed(Around):
    """A mode that cannot be changed."""

    def train(self, mode: bool = True) -> Any:
        raise NotImplementedError("the mode is fixed")


class Silent(Around):
    """A `train` that forgets to return the module."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


class InNumPy(Around):
    def forward(self, ids: Tensor) -> Any:
        return self.inner(ids).detach().numpy()


class Anything(Around):
    """Hands on whatever it is given to a program that demands a mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(Split(inner))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("kind", [Handing, Raising, Stateless, Fixed, Silent, InNumPy])
def test_whatever_is_around_a_program(kind: type[Around], small: pl.CkptedTransformer) -> None:
    program = kind(RIGHTS["course"](small).eval())
    report = pl.compare(small, program, IDS)
    assert report.verdict == "equivalent"
    assert report.alignment.check(small, program).bit_equal


@pytest.mark.parametrize("kind", support.few_of([Handing, Raising, Stateless, Fixed, Silent], Raising, Stateless))
def test_whatever_is_around_a_program_it_is_recognised(kind: type[Around], small: pl.CkptedTransformer) -> None:
    assert pl.compare(kind(RIGHTS["course"](small).eval()), RIGHTS["einsum"](small), IDS)


def test_what_a_wrapped_forward_demands_is_given(small: pl.CkptedTransformer) -> None:
    assert pl.compare(small, Anything(small), IDS).verdict == "equivalent"


class Demanding(Around):
    def forward(self, ids: Tensor, *, temperature: float) -> Any:
        return self.inner(ids) / temperature


def test_what_nobody_knows_is_said(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Demanding(RIGHTS["course"](small)), IDS)
    assert report.verdict == "inconclusive"
    assert "demands temperature, and was given None: compare a module that takes ids alone" in report.notes[-1]


def test_complex_numbers_are_no_logits(small: pl.CkptedTransformer) -> None:
    class Complex(Around):
        def forward(self, ids: Tensor) -> Any:
            return self.inner(ids).to(torch.complex64)

    assert "complex numbers" in pl.compare(small, Complex(RIGHTS["course"](small)), IDS).notes[-1]


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda w: w.to_sparse(),
    "sparse by rows": lambda w: w.to_sparse_csr(),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.125, 0, torch.qint8),
    "complex": lambda w: torch.complex(w, -w),
    "conjugated": lambda w: torch.complex(w, -w).conj(),
    "of eight bits": lambda w: w.to(torch.float8_e4m3fn),
    "whole": lambda w: w.int(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quantize_per_tensor).*:UserWarning")
def test_tensors_of_every_kind(kind: str) -> None:
    first = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, -4.0]])
    second = first.clone()
    second[0, 2] = 5.0
    one, same, other = KINDS[kind](first), KINDS[kind](first), KINDS[kind](second)
    assert pl.compare(one, same).bit_equal
    found = pl.compare(one, other)
    assert not found.bit_equal
    assert found.shape == (2, 3)
    assert found.max_abs == 2.0
    assert pl.compare({"w": one}, {"w": same}).verdict == "identical"
    assert pl.compare({"w": one}, {"w": other}).verdict == "different"


def test_a_program_that_keeps_a_matrix_in_eight_bits() -> None:
    model, hf = support.pair()
    kept = hf.transformer.h[0].mlp.c_fc
    kept.weight = nn.Parameter(kept.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    kept.forward = lambda x: x @ kept.weight.float() + kept.bias
    assert pl.compare(model, hf, inputs=[[1, 2, 3]]).verdict == "equivalent"
    kept.forward = lambda x: x @ kept.weight.float() - kept.bias
    assert pl.compare(model, hf, inputs=[[1, 2, 3]]).verdict == "different"


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
def test_tensors_of_several_sizes_are_refused() -> None:
    for sides in ((nested(), nested()), ({"w": nested()}, {"w": nested()})):
        with pytest.raises(pl.InputError, match="cannot be read one by one") as caught:
            pl.compare(*sides)
        assert caught.value.code == "compare-no-values"


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
def test_the_parts_of_a_nested_tensor_are_compared() -> None:
    """What the refusal says to do."""
    parts = nested().unbind()
    assert all(pl.compare(part, part.clone()).bit_equal for part in parts)
