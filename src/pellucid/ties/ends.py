"""The two ends of a model, embedding and head, whoever's model it is; every change comes with what undoes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from pellucid.errors import InputError, WeightsError
from pellucid.gpt2.model import Unembedding
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import address
from pellucid.ties.predict import has_bias, plain_linear
from pellucid.ties.subject import OUR_EMBED, OUR_HEAD, declared_by, is_hf, unwrapped, weight_names
from pellucid.weights.importing import same_numbers

REPLACE = "pl.replace_head(model, torch.nn.Linear({1}, {0}, bias=False), tie=...) puts a head there that is reloaded."


class Ends(ABC):
    """Embedding and head of one model."""

    embed_name: str
    head_name: str

    @property
    @abstractmethod
    def embedding(self) -> nn.Parameter:
        """The embedding, [V, D]."""

    @property
    @abstractmethod
    def head(self) -> nn.Parameter | None:
        """The head's own parameter, whatever its order of axes; None if it owns none."""

    @property
    @abstractmethod
    def matrix(self) -> Tensor | None:
        """The head as [V, D]; None if it is no linear map."""

    @abstractmethod
    def head_rows(self) -> Tensor:
        """The head as [V, D].

        Raises:
            WeightsError: It is no plain linear map without bias.
        """

    @abstractmethod
    def install(self, head: nn.Linear | None, undo: ExitStack) -> None:
        """Make the head this `Linear`'s matrix; None makes it the embedding."""

    @abstractmethod
    def declare(self, tied: bool, undo: ExitStack) -> None:
        """Make configuration and caches say so."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, as one object."""
        return self.head is None or self.head is self.embedding

    @property
    def shares(self) -> bool:
        """Whether the head has the embedding's numbers, in its memory or in its own."""
        rows = self.matrix
        return rows is not None and (self.tied or same_numbers(rows.detach(), self.embedding.detach()))


def ends_of(model: nn.Module) -> Ends:
    """The ends of a model of ours or of transformers.

    Raises:
        InputError: Another model, or one without a head.
    """
    inner = unwrapped(model)
    if isinstance(inner, CkptedTransformer):
        return OurEnds(inner)
    head, embedding = weight_names(inner) if is_hf(inner) else (None, None)
    if head is None or embedding is None:
        raise InputError(
            f"{type(inner).__name__}: no output head that could be tied to an embedding.",
            code="no-head",
            remedy="Give a model of pellucid, or one of transformers with get_output_embeddings().",
        )
    return HfEnds(inner, head, embedding)


class OurEnds(Ends):
    """The ends of a `CkptedTransformer`: if they are tied, its head owns no parameter."""

    embed_name, head_name = OUR_EMBED, OUR_HEAD

    def __init__(self, model: CkptedTransformer) -> None:
        self.model = model

    @property
    def plain(self) -> bool:
        """Whether the head is the one that the model was built with."""
        return type(self.model.unembed) is Unembedding

    @property
    def embedding(self) -> nn.Parameter:
        return self.model.embed.W_E

    @property
    def head(self) -> nn.Parameter | None:
        return self.model.unembed._parameters.get("W_U")

    @property
    def matrix(self) -> Tensor | None:
        return self.model.unembed.weight if self.plain else None

    @property
    def tied(self) -> bool:
        return self.plain and self.model.unembed.tied

    def head_rows(self) -> Tensor:
        if not self.plain:
            raise WeightsError(
                f"unembed is a {type(self.model.unembed).__name__}, expected the one that the model was built with.",
                code="head-not-plain",
                remedy=REPLACE.format(*self.embedding.shape),
            )
        return self.model.unembed.weight

    def install(self, head: nn.Linear | None, undo: ExitStack) -> None:
        if not self.plain:
            undo.callback(setattr, self.model, "unembed", self.model.unembed)
            self.model.unembed = Unembedding(self.model.embed, None, self.model.products)
        undo.callback(self._set, self.head)
        if head is None:
            self._set(None)
        else:
            rows = head.weight.detach().clone()  # of its own: the Linear given stays the caller's
            self._set(nn.Parameter(rows.t(), requires_grad=head.weight.requires_grad))

    def _set(self, W_U: nn.Parameter | None) -> None:
        unembed = self.model.unembed
        unembed._parameters.pop("W_U", None)
        unembed.tied = W_U is None
        if W_U is not None:
            unembed.W_U = W_U

    def declare(self, tied: bool, undo: ExitStack) -> None:
        undo.callback(setattr, self.model, "config", self.model.config)
        self.model.config = self.model.config.replace(tie_word_embeddings=tied)


class HfEnds(Ends):
    """The ends of a transformers model: if they are tied, its head holds the embedding's own parameter."""

    def __init__(self, model: Any, head: str, embedding: str) -> None:
        self.model = model
        self.head_name, self.embed_name = head, embedding

    @property
    def embedding(self) -> nn.Parameter:
        return self.model.get_input_embeddings().weight

    @property
    def head(self) -> nn.Parameter | None:
        linear = plain_linear(self.model.get_output_embeddings())
        return None if linear is None else linear._parameters["weight"]

    @property
    def matrix(self) -> Tensor | None:
        return self.head

    @property
    def tied(self) -> bool:
        return self.head is self.embedding

    def head_rows(self) -> Tensor:
        module = self.model.get_output_embeddings()
        linear = plain_linear(module)
        if linear is not module or linear is None or has_bias(linear):
            raise WeightsError(
                f"{self.head_name.rpartition('.')[0]} is {module}, expected a Linear without bias.",
                code="head-not-plain",
                remedy=REPLACE.format(*self.embedding.shape),
            )
        return linear.weight

    def install(self, head: nn.Linear | None, undo: ExitStack) -> None:
        before = self.model.get_output_embeddings()
        if head is None:
            undo.callback(setattr, before, "weight", before.weight)
            before.weight = self.embedding
        elif head is not before:
            undo.callback(self.model.set_output_embeddings, before)
            self.model.set_output_embeddings(head)

    def declare(self, tied: bool, undo: ExitStack) -> None:
        pairs = declared_by(self.model).by_class or {}
        if tied and pairs.get(self.head_name) != self.embed_name:
            raise WeightsError(
                f"{type(self.model).__name__} does not declare that {self.head_name} may be {self.embed_name}, "
                "so that it could not be saved.",
                code="tie-not-declared",
                remedy=f"Declare it in the class: _tied_weights_keys = {{{self.head_name!r}: {self.embed_name!r}}}.",
            )
        config = self.model.config
        said = getattr(config, "tie_word_embeddings", None)
        if said is None:
            undo.callback(delattr, config, "tie_word_embeddings")
        else:
            undo.callback(setattr, config, "tie_word_embeddings", said)
        config.tie_word_embeddings = tied
        undo.callback(setattr, self.model, "all_tied_weights_keys", self.model.all_tied_weights_keys)
        self.model.all_tied_weights_keys = self.model.get_expanded_tied_weights_keys(all_submodels=True)


def same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices show the same numbers of the same memory."""
    return a is b or (address(a) == address(b) != 0 and a.shape == b.shape and a.stride() == b.stride())
