"""The output head of a model, ours or of transformers: what it is now, and how it is made another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pellucid.errors import InputError, ShapeError, WeightsError
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import address
from pellucid.ties.subject import OUR_EMBED, OUR_HEAD, built, declared_by, is_hf, plain_linear, unwrapped, weight_names


class OutputHead:
    """The output head of a transformers model; if it is tied, it holds the embedding's own parameter."""

    def __init__(self, model: Any, name: str, embedding_name: str) -> None:
        self.model, self.name, self.embedding_name = model, name, embedding_name

    @property
    def embedding(self) -> nn.Parameter:
        """The embedding that the head may be, [V, D]."""
        return self.model.get_input_embeddings().weight

    @property
    def own(self) -> nn.Parameter | None:
        """The head's own parameter, whatever its order of axes; None if it owns none."""
        linear = plain_linear(self.model.get_output_embeddings())
        return None if linear is None else linear._parameters["weight"]

    @property
    def rows(self) -> Tensor | None:
        """The head as [V, D]; None if it is no linear map."""
        return self.own

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, as one object."""
        return self.own is self.embedding

    def unexpected(self) -> str | None:
        """What the head is instead of a plain linear map without bias, and what was expected; None if it is plain."""
        module = self.model.get_output_embeddings()
        plain = plain_linear(module) is module and has_no_bias(module)
        return None if plain else f"{module}, expected a Linear without bias"

    def require_rows(self) -> Tensor:
        """Return the head as [V, D]; raise `WeightsError` if it is no plain linear map without bias."""
        unexpected, rows = self.unexpected(), self.rows
        if unexpected is not None or rows is None:
            vocab, width = self.embedding.shape
            raise WeightsError(
                f"{self.name.rpartition('.')[0]} is {unexpected}.",
                code="head-not-plain",
                remedy=f"pl.replace_head(model, torch.nn.Linear({width}, {vocab}, bias=False), tie=...) puts a head "
                "there that is reloaded.",
            )
        return rows

    def install(self, head: nn.Linear | None) -> None:
        """Make the head this `Linear`'s matrix; None makes it the embedding."""
        if head is None:
            self.model.get_output_embeddings().weight = self.embedding
        else:
            self.model.set_output_embeddings(head)

    def declare(self, tied: bool) -> None:
        """Make configuration and caches say whether it is tied; raise `WeightsError` if the class knows no such tie."""
        pairs = declared_by(self.model).by_class or {}
        if tied and pairs.get(self.name) != self.embedding_name:
            raise WeightsError(
                f"{type(self.model).__name__} does not declare that {self.name} may be {self.embedding_name}, "
                "so it could not be saved.",
                code="tie-not-declared",
                remedy=f"Declare it in the class: _tied_weights_keys = {{{self.name!r}: {self.embedding_name!r}}}.",
            )
        self.model.config.tie_word_embeddings = tied
        self.model.all_tied_weights_keys = self.model.get_expanded_tied_weights_keys(all_submodels=True)


class _OurHead(OutputHead):
    """The output head of a `CkptedTransformer`; if it is tied, it owns no parameter."""

    def __init__(self, model: CkptedTransformer) -> None:
        super().__init__(model, OUR_HEAD, OUR_EMBED)
        self.kind = type(built(model).unembed)  # of the head that the model was built with

    @property
    def own(self) -> nn.Parameter | None:
        return self.model.unembed._parameters.get("W_U")

    @property
    def rows(self) -> Tensor | None:
        return None if self.unexpected() else self.model.unembed.weight

    @property
    def tied(self) -> bool:
        return not self.unexpected() and self.model.unembed.tied

    def unexpected(self) -> str | None:
        given = type(self.model.unembed)
        return None if given is self.kind else f"a {given.__name__}, expected the one that the model was built with"

    def install(self, head: nn.Linear | None) -> None:
        if self.unexpected():
            self.model.unembed = self.kind(self.model.embed, None, self.model.products)
        unembed = self.model.unembed
        unembed._parameters.pop("W_U", None)
        unembed.tied = head is None
        if head is not None:
            rows = head.weight.detach().clone()  # a copy, because the Linear given stays the caller's
            unembed.W_U = nn.Parameter(rows.t(), requires_grad=head.weight.requires_grad)

    def declare(self, tied: bool) -> None:
        self.model.config = self.model.config.replace(tie_word_embeddings=tied)


def head_of(model: nn.Module) -> OutputHead:
    inner = unwrapped(model)
    if isinstance(inner, CkptedTransformer):
        return _OurHead(inner)
    head, embedding = weight_names(inner) if is_hf(inner) else (None, None)
    if head is None or embedding is None:
        raise InputError(
            f"{type(inner).__name__}: no output head that could be tied to an embedding.",
            code="no-head",
            remedy="Give a model of pellucid, or one of transformers with get_output_embeddings().",
        )
    return OutputHead(inner, head, embedding)


def same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices show the same numbers of the same memory."""
    return a is b or (address(a) == address(b) != 0 and a.shape == b.shape and a.stride() == b.stride())


def has_no_bias(linear: nn.Linear) -> bool:
    return linear._parameters.get("bias") is None  # `linear.bias` is annotated as a Tensor, never None


def misfit(head: OutputHead, rows: Tensor, verb: str) -> ShapeError:
    there = head.embedding
    return ShapeError(
        f"{verb}: the head is {list(rows.shape)} {rows.dtype} on {rows.device}, expected what {head.embedding_name} "
        f"is: {list(there.shape)} {there.dtype} on {there.device}.",
        code="head-shape",
        remedy="Make it torch.nn.Linear(n_embd, vocab_size, bias=False) and move it with .to(model.device, "
        "model.dtype); resize the embedding first if the vocabulary is to change.",
    )
