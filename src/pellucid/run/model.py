"""`CkptedTransformer`: the mathematics with the verbs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pellucid.check import path_of
from pellucid.errors import InputError
from pellucid.family.families import family_of
from pellucid.family.json_config import Config
from pellucid.family.network import Run, last_column
from pellucid.family.part import Weights, has_native_hooks, state_of, submodules
from pellucid.generate.generating import GeneratingTransformer
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.generate.stepper import chosen_logprobs
from pellucid.names import aliases
from pellucid.names.aliases import Names
from pellucid.names.attributes import MODEL
from pellucid.names.calls import OPENING, SAVING, named_arguments, named_methods
from pellucid.numerics.dispatch import recorded
from pellucid.numerics.freed_memory import LITTLE, keep_freed
from pellucid.numerics.products import Execution
from pellucid.run.activations import ActivationCkpts
from pellucid.run.cache import KeyValueCache, continued
from pellucid.run.edit import Edit
from pellucid.run.origin import Origin, source_of
from pellucid.run.region import Index, Region
from pellucid.run.taps import EditTap, Recorder, Start, beginning, captured, unchecked_beginning, warn_of_dropout
from pellucid.tap import Chain, StopAfter, Stopped, Tap
from pellucid.text.batch import Batch, Inputs
from pellucid.text.batching import Batcher
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights import exchange, load


@named_methods
class CkptedTransformer(GeneratingTransformer):
    """A model, such as GPT-2, in which every intermediate value passes through a named checkpoint.

    Args:
        config: What the model is; there is no default, and leaving it out is an error that says so.
        weights: Stored parameters by name (`config.schema.stored`), used without a copy; fresh
            ones, by the family's initialisation, if None.
        tokenizer: For text; ids alone work without one.
        attention: "auto" fuses every layer that nobody looks inside, "eager" makes every layer explicit.
        numerics: "exact" performs transformers' operations, "fast" may fuse them, "packed" also keeps second
            copies of the weights if they save time, "bfloat16" multiplies by the weights in bfloat16.
        provenance: Where the weights came from, and what was assumed on the way.
        generation: What a `generation_config.json` says; without one, what the configuration says counts.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> logits, ckpts = model.run_with_ckpts("Once upon a time", names=["blocks.*.resid_post"])
        >>> list(ckpts)[-1], ckpts["blocks.3.resid_post"].shape
        ('blocks.3.resid_post', torch.Size([1, 4, 256]))
    """

    elsewhere = MODEL

    def __init__(
        self,
        config: Config | None = None,
        weights: Weights | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        attention: str = "auto",
        numerics: str = "exact",
        provenance: dict[str, str] | None = None,
        generation: GenerationSettings | None = None,
    ) -> None:
        family = family_of(config)
        super().__init__(cast(Config, config), Execution(attention, numerics))
        family.architecture.build(self, config, weights)
        self.tokenizer = tokenizer
        self.provenance = dict(provenance or {})
        self._generation = None
        if generation is not None:
            self.generation = generation

    @classmethod
    @named_arguments(OPENING)
    def from_pretrained(
        cls,
        model_name: str | Path | Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        attention: str = "auto",
        numerics: str = "exact",
        config: load.Configuration | None = None,
        ignore_config: Collection[str] = (),
        hub: load.HubOptions | None = None,
    ) -> CkptedTransformer:
        """Open a model; `pellucid.load` says what each argument means.

        Args:
            model_name: An alias, a hub id, a folder or a file.
        """
        options = load.LoadOptions(
            device=device, dtype=dtype, attention=attention, numerics=numerics, config=config,
            ignore_config=ignore_config, hub=load.HubOptions() if hub is None else hub,
        )  # fmt: skip
        return load.load(cls, model_name, options, Tokenizer.from_folder)

    @named_arguments(SAVING)
    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the tokenizer's files, which transformers loads exactly.

        A tied embedding is written once. The folder is saved as one: after a kill it holds the old model, the new one,
        or files of both that `load` refuses to read together.
        """
        exchange.save_pretrained(self, path_of(folder))

    def tokenize(self, inputs: Inputs, *, mask: Any = None, padding_side: str = "left") -> Batch:
        """Make a batch of a string, strings, a tensor of ids or ragged lists of ids.

        Args:
            inputs: What to run. Nothing is added to it, no beginning-of-text id either.
            mask: [B, P], 1 at real tokens and 0 at pads; beside ids, not beside texts.
            padding_side: Where shorter rows get their pads.

        Raises:
            InputError: See `pellucid.text.batching.Batcher`.
        """
        if isinstance(inputs, Batch) and inputs.checked is self.config and mask is None:
            return inputs.to(self.device)  # it was checked when it was made
        other = self.provenance.get("tokenizer", "")
        batcher = Batcher(self.config, self.tokenizer, self.device, self._generation, other)
        return batcher(inputs, mask, padding_side)

    def forward(
        self,
        inputs: Inputs,
        tap: Tap | None = None,
        *,
        mask: Any = None,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
        start_at: Start | None = None,
    ) -> Tensor:
        """Logits [B, P, V] of whatever `tokenize` accepts; `tap` sees, and may replace, every value on the way.

        Beside ids, `mask` [B, P] is 1 at real tokens. With a cache, `inputs` go on where its text ends, and are in it
        afterwards. With `last_only`, the logits are [B, 1, V], those of each text's last token.

        With `start_at=("blocks.4.resid_pre", value)`, the run begins at that block with that value [B, P, D].

        Every verb runs the model through this call, so a hook on the model sees each of them. It gets a `Batch` of the
        tokens that are run, and the rest by keyword. A `pellucid.family.network.Run` is run as it is.

        Under `torch.compile` a tensor of ids [B, P] is taken as it is, without checks and without pads, unless there is
        a mask or a cache; a start is then given as "blocks.4.resid_pre" and no other name of it.
        """
        if isinstance(inputs, Run):
            return self.transform(inputs, tap)
        ids_alone = isinstance(inputs, Tensor) and mask is None and cache is None
        if ids_alone and torch.compiler.is_compiling():  # checks break the graph
            positions = torch.arange(inputs.size(-1), device=inputs.device).expand_as(inputs)
            start = None if start_at is None else unchecked_beginning(start_at)
            return self.transform(Run(inputs, positions, columns=last_column if last_only else None, start=start), tap)
        if tap is not None and not hasattr(tap, "wants"):
            kind = "a tensor" if isinstance(tap, Tensor) else f"a {type(tap).__name__}"
            raise InputError(
                f"forward: {kind} was given as the tap, expected something with `wants`.",
                code="tap-kind",
                remedy="Give a mask by its name: model(ids, mask=mask). A function that changes values is an edit: "
                "model.run(ids, edits=pl.Edit.apply(name, function)).",
            )
        batch = self.tokenize(inputs, mask=mask)
        columns = batch.last_columns if last_only else None
        if cache is None:
            padding, start = batch.mask if batch.padded else None, None
            if start_at is not None:
                start = beginning(start_at, self.schema, batch, self.embed.W_E)[1]
            return self.transform(Run(batch.ids, batch.positions, padding, columns=columns, start=start), tap)
        if start_at is not None:
            raise InputError(
                "forward: start_at= with a cache, which needs the keys and values of every block.",
                code="start-with-cache",
                remedy="Leave the cache out.",
            )
        with continued(batch, cache, self.config) as (positions, padding):
            return self.transform(Run(batch.ids, positions, padding, cache, columns), tap)

    def run(
        self,
        inputs: Inputs,
        *,
        mask: Any = None,
        start_at: Start | None = None,
        edits: Edit | Sequence[Edit] = (),
        last_only: bool = False,
    ) -> Tensor:
        """Run, perhaps from a block on and with edits.

        Args:
            inputs: Whatever `tokenize` accepts.
            mask: [B, P], 1 at real tokens, beside ids that hold pads.
            start_at: `("blocks.4.resid_pre", value)`: the run begins at that block with that value [B, P, D].
            edits: Changes on the way, in this order.
            last_only: Return the logits of each text's last token alone.

        Returns:
            Logits [B, P, V], or [B, 1, V] with `last_only`.

        Raises:
            InputError: If no run can start at the place, or the value does not fit the batch.
            EditError: If an edit does not fit, or never fired.

        Example:
            >>> import pellucid as pl
            >>> model = pl.load()
            >>> logits, ckpts = model.run_with_ckpts("Once upon a time", names="blocks.2.resid_pre")
            >>> again = model.run("Once upon a time", start_at=("blocks.2.resid_pre", ckpts["blocks.2.resid_pre"]))
            >>> bool((again == logits).all())
            True
        """
        warn_of_dropout(self, "run")
        batch = self.tokenize(inputs, mask=mask)
        edit_tap = EditTap(edits, batch, self)
        tap = edit_tap if edit_tap.fired else None
        logits = self(batch, tap=tap, last_only=last_only, start_at=start_at)
        edit_tap.check_fired()
        return logits

    def next_token_logits(self, inputs: Inputs, *, mask: Any = None, cache: KeyValueCache | None = None) -> Tensor:
        """Logits [B, V] of what follows each text: those of its last token, and no others.

        They are `forward`'s to within rounding: torch multiplies one row by another kernel than many.

        Example:
            >>> import pellucid as pl
            >>> model = pl.load()
            >>> model.tokenizer.decode(model.next_token_logits("Once upon a").argmax())
            ' time'
        """
        warn_of_dropout(self, "next_token_logits")
        return self(self.tokenize(inputs, mask=mask), cache=cache, last_only=True)[:, 0]

    def logprobs(self, inputs: Inputs, *, mask: Any = None) -> Tensor:
        """[B, P-1]: log-probability in nats of each next token given those before it; nan where either is a pad."""
        return self._logprobs("logprobs", self.tokenize(inputs, mask=mask))

    def _logprobs(self, verb: str, batch: Batch) -> Tensor:
        if not torch.is_grad_enabled():
            warn_of_dropout(self, verb)
        chosen = chosen_logprobs(self(batch)[:, :-1], batch.ids[:, 1:])
        return chosen.masked_fill(~(batch.mask[:, 1:] & batch.mask[:, :-1]), torch.nan)

    def loss(self, inputs: Inputs, *, mask: Any = None) -> Tensor:
        """Mean negative log-likelihood of the next tokens in nats, pads left out."""
        batch = self.tokenize(inputs, mask=mask)
        logprobs = self._logprobs("loss", batch)
        if batch.padded:
            logprobs = logprobs[batch.mask[:, 1:] & batch.mask[:, :-1]]
        if not logprobs.numel():
            raise InputError(
                "loss: no text has a second token, so there is nothing to predict.",
                code="nothing-to-predict",
                remedy="Give texts of two tokens or more.",
            )
        return -logprobs.mean()

    def run_with_ckpts(
        self,
        inputs: Inputs,
        *,
        mask: Any = None,
        names: Names = None,
        stop_at: aliases.Name | None = None,
        start_at: Start | None = None,
        edits: Edit | Sequence[Edit] = (),
        pos: Index = None,
        heads: Index = None,
        grads: bool = False,
    ) -> tuple[Tensor | None, ActivationCkpts]:
        """Run, and capture the values under the given names.

        Looking never changes the answer: the logits are those of the plain run, to the last bit. Captured
        values are snapshots and carry no gradient.

        Args:
            inputs: Whatever `tokenize` accepts.
            mask: [B, P], 1 at real tokens, beside ids that hold pads.
            names: Names, patterns (`*` within a dotted part, `**` across) or aliases; None captures everything.
            stop_at: Run no further than this checkpoint, which is included; the logits are then None.
            start_at: Begin at a block with a value [B, P, D]: `("blocks.4.resid_pre", value)`. Names mean what comes
                from there on.
            edits: Changes on the way, in this order; captures see what the model goes on with.
            pos: Columns of the batch to keep (queries, for scores and patterns); every axis stays.
            heads: Heads to keep, if there is a head axis.
            grads: Hand out tensors on the path of the gradient instead of snapshots. Layers whose scores,
                pattern or scaled values are asked for then run explicitly and may differ in the last bits.

        Returns:
            Logits [B, P, V], and the captured values in execution order.

        Raises:
            UnknownNameError: If a name does not exist, a pattern matches nothing, or a name
                cannot fire because the run stops before it or starts after it.
            EditError: If an edit does not fit, or never fired.
        """
        if grads and (pos is not None or heads is not None):
            raise InputError(
                "run_with_ckpts: grads=True with pos= or heads=, but a part is not on the path of the gradient.",
                code="grads-of-a-part",
                remedy="Capture the whole value and select from its .grad.",
            )
        modules = submodules(self)
        if not grads:
            warn_of_dropout(self, "run_with_ckpts", modules)
        batch = self.tokenize(inputs, mask=mask)
        last = None if stop_at is None else aliases.resolved(stop_at, self.schema)
        first = None
        if start_at is not None:
            first, (_, value) = beginning(start_at, self.schema, batch, self.embed.W_E)
            start_at = (first, value)  # already where the model is
        wanted = captured(names, self.schema, first, last)
        part = Region(pos, heads).with_heads_of(self.schema, wanted)
        recorder = Recorder(wanted, self.schema, part, grads, copies=has_native_hooks(modules))
        edit_tap = EditTap(edits, batch, self)
        taps: list[Tap] = [edit_tap, recorder] if edit_tap.fired else [recorder]
        if last is not None:
            taps.append(StopAfter(last))
        logits = None
        with recorded() if grads else torch.no_grad(), suppress(Stopped):
            logits = self(batch, tap=Chain(taps) if len(taps) > 1 else recorder, start_at=start_at)
        edit_tap.check_fired()
        recorder.check_fired()
        if len(wanted) * batch.ids.numel() * self.schema.sizes["d_model"] > LITTLE:
            keep_freed()
        return logits, ActivationCkpts(
            recorder.values, batch, self.schema, part=part, fired=edit_tap.fired,
            origin=Origin(source_of(self), self, state_of(modules)),
        )  # fmt: skip
