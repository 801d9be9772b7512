"""What published figures are computed again on: a model, and sentences drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pellucid.errors import InputError
from pellucid.reproduce.sentences import Sentences, groups
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Batch
from pellucid.text.tokenizer import Tokenizer

Head = tuple[int, int]
"""Layer and number."""


@dataclass(frozen=True)
class Study:
    """A model and the texts that it is measured on.

    Args:
        model: What runs, evaluating.
        templates: How many of the templates.
        count: Sentences of each template and order of names.
        each: How many of them what takes hundreds of runs is measured on.
        seed: Of all draws.
    """

    model: CkptedTransformer
    templates: int
    count: int
    each: int
    seed: int

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's.

        Raises:
            InputError: It has none.
        """
        if self.model.tokenizer is None:
            raise InputError(
                "reproduce: the model has no tokenizer, and published figures are of texts.",
                code="no-tokenizer",
                remedy="Set model.tokenizer = pl.Tokenizer.from_file('tokenizer.json').",
            )
        return self.model.tokenizer

    @cached_property
    def groups(self) -> list[Sentences]:
        """The sentences of each template and order of names."""
        return groups(self.tokenizer, self.templates, self.count, self.seed)

    @cached_property
    def few(self) -> Sentences:
        """The first `each` sentences of each group together, for what takes hundreds of runs."""

        def first(field: str) -> list[Any]:
            return [text for group in self.groups for text in getattr(group, field)[: self.each]]

        return Sentences(first("texts"), first("swapped"), first("others"), first("answers"), -1, -1, -1)

    def behind_bos(self, texts: Sequence[str]) -> Batch:
        """Texts with the beginning-of-text id in front.

        Raises:
            InputError: The configuration has no such id.
        """
        start = self.model.config.bos_token_id
        if start is None:
            raise InputError(
                "reproduce: the model's configuration has no bos_token_id, behind which the figure was published.",
                code="no-bos",
                remedy="Give config={'bos_token_id': 50256} to pl.load, for example.",
            )
        rows = [[start, *self.tokenizer.encode(text)] for text in texts]
        longest = max(map(len, rows))  # pads in front, with a mask that says so: the id itself may be a pad id
        ids = torch.tensor([[start] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return self.model.tokenize({"input_ids": ids, "attention_mask": mask})

    def require(self, *wanted: Head, neurons: int = 0) -> None:
        """See that the model has these heads, and so many neurons in each layer.

        Raises:
            InputError: It has not.
        """
        sizes = self.model.schema.sizes
        layers, count, width = sizes["layer"], sizes["head"], sizes["d_mlp"]
        missing = [f"head {layer}.{head}" for layer, head in wanted if layer >= layers or head >= count]
        missing += [f"neuron {neurons - 1}"] * (neurons > width)
        if missing:
            raise InputError(
                f"reproduce: no {missing[0]} in {layers} layers of {count} heads and {width} neurons.",
                code="index-out-of-range",
                remedy="Give a model of GPT-2 small's shape.",
            )
