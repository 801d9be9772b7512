"""The verbs that write: `generate` and `stream`, for a model that can tokenize."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from torch import Tensor

from pellucid.errors import ConfigError, shown
from pellucid.family.network import Network
from pellucid.family.part import Part, require_numbers, submodules
from pellucid.fast.decoder import forget
from pellucid.generate.beams import Beams
from pellucid.generate.generation import Generation, Stop, Token, stopping
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.generate.loop import generate, stream
from pellucid.generate.request import (
    ELSEWHERE,
    Asked,
    Request,
    Seed,
    asked_by,
    edits_of,
    left,
    names_of,
    plan_of,
    returned_of,
    sampler_of,
    with_what_always_counts,
)
from pellucid.generate.sampler import Sampler
from pellucid.names.aliases import Names
from pellucid.names.calls import named_arguments, named_methods
from pellucid.run.edit import Edit
from pellucid.run.taps import warn_of_dropout
from pellucid.text import ids
from pellucid.text.batch import Batch, Inputs
from pellucid.text.borrowed import complete
from pellucid.text.tokenizer import Tokenizer


@named_methods
class GeneratingTransformer(Network):
    """A model that goes on with texts; whoever inherits from it makes batches of them."""

    _generation: GenerationSettings | None

    @property
    def tokenizer(self) -> Any:
        """What reads and writes texts; what a caller's own lacks is made of its `encode` and `decode`."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, given: Any) -> None:
        self._tokenizer = given if isinstance(given, Tokenizer) else complete(given)

    @property
    def generation(self) -> GenerationSettings:
        """What the model's `generation_config.json` says; without one, what its configuration says.

        Set it to change what ends a text and what `sampler="file"` does; None goes back to the configuration's.
        """
        return self._generation or GenerationSettings.of_config(self.config)

    @generation.setter
    def generation(self, settings: GenerationSettings | None) -> None:
        if settings is not None and not isinstance(settings, GenerationSettings):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"generation: {shown(settings)} given, expected pl.GenerationSettings or None.",
                code="generation-wrong-type",
                remedy="Give pl.GenerationSettings({'eos_token_id': 0, 'top_p': 0.9}), with transformers' names.",
            )
        self._generation = settings

    def tokenize(self, inputs: Inputs, *, mask: Any = None, padding_side: str = "left") -> Batch:
        """Make a batch of whatever a model takes."""
        raise NotImplementedError

    @named_arguments(ELSEWHERE)
    def generate(
        self,
        inputs: Inputs,
        *,
        mask: Any = None,
        max_new_tokens: int | None = None,
        sampler: Sampler | Literal["file"] | None = None,
        seed: Seed = None,
        stop: Stop = None,
        end_ids: int | Iterable[int] | None = None,
        num_return_sequences: int | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | Literal["never"] | None = None,
        overflow: str = "error",
        use_cache: bool = True,
        names: Names = (),
        edits: Edit | Sequence[Edit] = (),
    ) -> Generation:
        """Continue one or more prompts.

        With equal settings and an equal seed the ids are those of transformers' `generate`, called with the same rows.

        Args:
            inputs: Whatever `tokenize` accepts; texts of unequal length are padded on the left.
            mask: 1 at real tokens, beside ids that hold pads.
            max_new_tokens: Tokens at most, 50 unless given; 0 gives the prompts back.
            sampler: How tokens are chosen; the likeliest one if None. "file" does what `generation` says
                (`generation_config.json`), lengths and beams included; what is given here counts before it.
            seed: The seed of the draws, a number or a generator; torch's own generator draws if None.
            stop: Strings and ids that end a text; they stay in it. A string counts wherever in the new text it comes.
            end_ids: Ids that end a text; those of `generation` if None.
            num_return_sequences: Texts for each prompt, next to each other; 1 unless given.
            num_beams: Above 1, a beam search so wide; 1 unless given.
            length_penalty: In a search, scores are divided by the number of new tokens to this power, 1 unless given.
            early_stopping: In a search, True ends when so many texts are finished, False (unless given) when none
                that goes on can get better at its length, "never" when none can at any length.
            overflow: What happens when the context is full: "error" refuses beforehand, "slide" continues from the last
                n_positions tokens, at positions from 0 on, run again for every token.
            use_cache: Whether keys and values are kept; without, the whole text runs for every token.
            names: Checkpoints to capture at every step; none if empty, all if None.
            edits: Changes on the way; positions are columns of the whole text.

        Returns:
            Ids, text, log-probabilities, why each text ended, and what was captured.

        Raises:
            InputError: If a prompt cannot be run, or a setting is out of range.
            EditError: If an edit does not fit, or never fired.
            NumericsError: If logits hold NaN.

        Example:
            >>> import pellucid as pl
            >>> out = pl.load().generate("Once upon a time", max_new_tokens=9)
            >>> out.text
            'Once upon a time, there was a little girl named Lily.'
        """
        prompts = self._prompts("generate", inputs, mask)
        asked = self._asked(
            prompts, sampler, max_new_tokens=max_new_tokens, stop=stop, num_return_sequences=num_return_sequences,
            num_beams=num_beams, length_penalty=length_penalty, early_stopping=early_stopping,
        )  # fmt: skip
        request = self._request(inputs, prompts, asked, end_ids, overflow, use_cache)
        looked_at = names_of(names, self.schema)
        changed = edits_of(edits)
        return generate(self, replace(request, seed=seed, names=looked_at, edits=changed))

    @named_arguments(ELSEWHERE)
    def stream(
        self,
        inputs: Inputs,
        *,
        mask: Any = None,
        max_new_tokens: int | None = None,
        sampler: Sampler | Literal["file"] | None = None,
        seed: Seed = None,
        stop: Stop = None,
        end_ids: int | Iterable[int] | None = None,
        num_return_sequences: int | None = None,
        overflow: str = "error",
        edits: Edit | Sequence[Edit] = (),
        explain: bool = False,
    ) -> Iterator[Token]:
        """Continue one or more prompts, token by token.

        The arguments are those of `generate`, and are checked at once, not at the first token. With `explain`, each
        token has the distributions that it was chosen from (`Sampler.explain`).

        Yields:
            For every step, a token of each text that goes on. Its text holds whole characters only.

        Example:
            >>> import pellucid as pl
            >>> "".join(token.text for token in pl.load().stream("Once upon a time", max_new_tokens=5))
            ', there was a little'
        """
        prompts = self._prompts("stream", inputs, mask)
        asked = self._asked(
            prompts, sampler, max_new_tokens=max_new_tokens, stop=stop, num_return_sequences=num_return_sequences
        )
        request = self._request(inputs, prompts, asked, end_ids, overflow, cached=True)
        return stream(self, replace(request, seed=seed, edits=edits_of(edits)), explain=explain)

    def refresh(self) -> None:
        """Forget what was prepared from the weights or known of them; it is made again.

        A write into a parameter is noticed without this; one that goes around torch's counting (`parameter.data`,
        numpy, another process) is not.
        """
        forget(self)
        self.products.forget()
        for module in submodules(self):
            if isinstance(module, Part):
                module.look_again()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` … do; it goes around torch's counting."""
        self.refresh()
        return super()._apply(fn, recurse)

    def _asked(self, prompts: Batch, sampler: Sampler | Literal["file"] | None, **given: Any) -> Asked:
        """What the caller gave, with the file's settings behind it if they were asked for."""
        settings, chosen = self.generation, sampler_of(sampler)
        if chosen == "file":
            asked = asked_by(settings, prompts.ids.size(1), self.schema.sizes["n_ctx"]).with_given(**given)
        else:
            asked = Asked().with_given(sampler=chosen, **given)
        return replace(asked, sampler=with_what_always_counts(asked.sampler, settings, self.schema.sizes["d_vocab"]))

    def _prompts(self, verb: str, inputs: Inputs, mask: Any) -> Batch:
        require_numbers(verb, [self.embed.W_E])
        warn_of_dropout(self, verb)
        return left(self.tokenize(inputs, mask=mask))

    def _request(
        self, inputs: Inputs, prompts: Batch, asked: Asked, end_ids: int | Iterable[int] | None, overflow: str,
        cached: bool,
    ) -> Request:  # fmt: skip
        settings, count = self.generation, asked.max_new_tokens
        when = stopping(self.schema, self.tokenizer, count, asked.stop, () if end_ids is None else end_ids)
        if end_ids is None:  # as in transformers, these may lie outside the vocabulary: then no text ends with them
            when = replace(when, end_ids=settings.end_ids)
        returned = returned_of(asked.num_return_sequences, asked.num_beams, asked.sampler)
        beams = None
        if asked.num_beams > 1:
            beams = Beams(asked.num_beams, asked.length_penalty, asked.early_stopping, returned)
        plan = plan_of(prompts, when, self.schema, cached=cached, overflow=overflow)
        single = ids.is_flat(inputs) and returned == 1
        pad = ids.pad_id(settings, self.schema.sizes["d_vocab"])
        return Request(prompts, single, asked.sampler, when, None, returned, beams, plan, frozenset(), (), pad)
