"""The verbs that write: `generate` and `stream`, for a model that can tokenize."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from torch import Tensor

from pellucid import ids
from pellucid.aliases import Names
from pellucid.batch import Batch, Inputs
from pellucid.ckpt import all_names
from pellucid.dialects import named_arguments
from pellucid.fast.prepared import forget
from pellucid.parameters import require_numbers
from pellucid.run.beams import Beams
from pellucid.run.edit import Edit
from pellucid.run.generate import generate, stream
from pellucid.run.generation import Generation, Token
from pellucid.run.request import (
    ELSEWHERE,
    Request,
    Seed,
    edits_of,
    left,
    names_of,
    pace_of,
    returned_of,
    sampler_of,
)
from pellucid.run.sampling import Sampler
from pellucid.run.stopping import Stop, Stopping, stopping
from pellucid.tokens import Tokenizer
from pellucid.transformer import Transformer


class GeneratingTransformer(Transformer):
    """A GPT-2 that goes on with texts; whoever inherits from it makes batches of them."""

    tokenizer: Tokenizer | None

    def tokenize(self, inputs: Inputs, *, mask: Any = None, padding_side: str = "left") -> Batch:
        """Make a batch of whatever a model takes."""
        raise NotImplementedError

    @named_arguments(ELSEWHERE)
    def generate(
        self,
        inputs: Inputs,
        *,
        mask: Any = None,
        max_new_tokens: int = 50,
        sampler: Sampler | None = None,
        seed: Seed = None,
        stop: Stop = (),
        end_ids: int | Iterable[int] | None = None,
        num_return_sequences: int = 1,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        overflow: str = "error",
        use_cache: bool = True,
        names: Names = (),
        edits: Edit | Sequence[Edit] = (),
    ) -> Generation:
        """Go on with a text or several.

        With equal settings and an equal seed the ids are those of transformers' `generate`, called with the same rows.

        Args:
            inputs: Whatever `tokenize` accepts; texts of unequal length are padded on the left.
            mask: 1 at real tokens, beside ids that hold pads.
            max_new_tokens: Tokens at most; 0 gives the prompts back.
            sampler: How tokens are chosen; the likeliest one where None.
            seed: Of the draws, a number or a generator; torch's own generator draws where None.
            stop: Strings and ids that end a text; they stay in it. A string counts wherever in the new text it comes.
            end_ids: Ids that end a text; the configuration's where None.
            num_return_sequences: Texts for each prompt, next to each other.
            num_beams: Above 1, a beam search so wide.
            length_penalty: Of the search: scores are divided by the number of new tokens to this power.
            early_stopping: Of the search: True ends when so many texts are finished, False when none that goes on can
                get better at its length, "never" when none can at any length.
            overflow: What happens where the context ends: "error" refuses beforehand, "slide" goes on from the last
                n_positions tokens, at positions from 0 on, run anew for every token.
            use_cache: Whether keys and values are kept; without, the whole text runs for every token.
            names: Checkpoints to capture at every step; none where empty, all where None.
            edits: Changes on the way; positions are columns of the whole text.

        Returns:
            Ids, text, log-probabilities, why each text ended, and what was captured.

        Raises:
            InputError: A prompt or a setting that cannot be.
            EditError: An edit that does not fit, or that never fired.
            NumericsError: Logits that hold NaN.

        Example:
            >>> import pellucid as pl
            >>> out = pl.load().generate("Once upon a time", max_new_tokens=9)
            >>> out.text
            'Once upon a time, there was a little girl named Lily.'
        """
        chosen = sampler_of(sampler)
        returned = returned_of(num_return_sequences, num_beams, chosen)
        beams = Beams(num_beams, length_penalty, early_stopping, returned) if num_beams > 1 else None
        ends = stopping(self.config, self.tokenizer, max_new_tokens, stop, end_ids)
        request = self._request(self.tokenize(inputs, mask=mask), chosen, ends, overflow, use_cache)
        request = replace(request, single=ids.is_flat(inputs), seed=seed, returned=returned, beams=beams)
        looked_at = names_of(names, all_names(self.config.n_layer))
        return generate(self, replace(request, names=looked_at, edits=edits_of(edits)))

    @named_arguments(ELSEWHERE)
    def stream(
        self,
        inputs: Inputs,
        *,
        mask: Any = None,
        max_new_tokens: int = 50,
        sampler: Sampler | None = None,
        seed: Seed = None,
        stop: Stop = (),
        end_ids: int | Iterable[int] | None = None,
        num_return_sequences: int = 1,
        overflow: str = "error",
        explain: bool = False,
    ) -> Iterator[Token]:
        """Go on with a text or several, token by token.

        The arguments are those of `generate`, and are checked at once, not at the first token. With `explain`, each
        token has the distributions that it was chosen from (`Sampler.explain`).

        Yields:
            For every step, a token of each text that goes on. Its text holds whole characters only.

        Example:
            >>> import pellucid as pl
            >>> "".join(token.text for token in pl.load().stream("Once upon a time", max_new_tokens=5))
            ', there was a little'
        """
        chosen = sampler_of(sampler)
        ends = stopping(self.config, self.tokenizer, max_new_tokens, stop, end_ids)
        request = self._request(self.tokenize(inputs, mask=mask), chosen, ends, overflow, True)
        returned = returned_of(num_return_sequences, 1, chosen)
        return stream(self, replace(request, single=ids.is_flat(inputs), seed=seed, returned=returned), explain=explain)

    def refresh(self) -> None:
        """Forget what fast numerics have prepared from the weights, which are then prepared anew.

        A write into a parameter is noticed without this; one that goes around torch's counting (`parameter.data`,
        numpy, another process) is not.
        """
        forget(self)
        self.products.forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` … do; it goes around torch's counting."""
        self.refresh()
        return super()._apply(fn, recurse)

    def _request(self, prompts: Batch, sampler: Sampler, stopping: Stopping, overflow: str, cached: bool) -> Request:
        require_numbers("generate", [self.embed.W_E])
        batch = left(prompts)
        pace = pace_of(batch, stopping, self.config, cached=cached, overflow=overflow)
        return Request(batch, False, sampler, stopping, None, 1, None, pace, frozenset(), ())
