"""The tuned lens: an affine map for each block, trained so that the last norm and the head can read its stream."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.check import as_number, path_of, require_seed, require_whole
from pellucid.corpus.sink import Progress
from pellucid.errors import InputError, shown
from pellucid.family.network import Network
from pellucid.lens.readout import Readout, divergence, readout
from pellucid.numerics.dispatch import recorded
from pellucid.run.activations import ActivationCkpts
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.origin import source_of, weights_fingerprint
from pellucid.weights import own_file
from pellucid.weights.manifests import is_there

_ABOUT = "pellucid.tuned_lens"
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps beside each parameter."""


@dataclass(frozen=True, eq=False)
class TunedLens:
    """One map h -> h + A h + a for each block but the last, read by W_U LN(h + A h + a).

    `fit` trains them; the last block's stream is what the model reads itself.

    Attributes:
        matrices: A, [blocks - 1, D, D].
        offsets: a, [blocks - 1, D].
        losses: The mean KL(output || lens) in nats of each step's tokens, [steps, blocks - 1].
        about: The model, its weights' fingerprint, the settings, and `step` of `steps`.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> lens = pl.lens.TunedLens.fit(model, ["Once upon a time there was a cat."] * 8, epochs=2)
        >>> _, ckpts = model.run_with_ckpts("Once upon a time", names="resid_post")
        >>> lens.read(ckpts).kl().sizes
        Frozen({'layer': 4, 'batch': 1, 'pos': 4})
    """

    matrices: Tensor
    offsets: Tensor
    losses: Tensor
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    @recorded()
    def fit(
        cls,
        model: CkptedTransformer,
        texts: Sequence[Any],
        *,
        seed: int = 0,
        epochs: int = 1,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        path: str | Path | None = None,
        every: int = 50,
    ) -> TunedLens:
        """Train a lens from the identity on, by Adam with a rate that falls linearly to zero.

        The loss of each block is the mean of KL(output || lens) over all tokens. The same seed, texts and settings
        give the same lens. The model is not changed.

        Args:
            model: An evaluating model.
            texts: A list of texts, or of rows of ids.
            seed: Of the order in which the texts are read.
            epochs: How often every text is read.
            batch_size: Texts in a step.
            learning_rate: Adam's, at the beginning.
            path: A file that is written every so many steps and at the end. If it is there, training continues where
                it got to, and gives what an uninterrupted one would have given.
            every: Steps between two writes.

        Raises:
            InputError: If there are no texts, a setting is out of range, the model trains, or another run made the
                file.
            WeightsError: If the file cannot be written.
            KeyboardInterrupt: By Control-C; it says how many steps were done, and what the file keeps of them.
        """
        plan = _Plan.checked(model, texts, seed, epochs, batch_size, learning_rate)
        every = require_whole("TunedLens.fit: every", every, at_least=1)
        training = _Training(model, plan)
        if path is not None and is_there(path_of(path)):
            training.resume(path)
        kept = training.done

        def words() -> str:
            left = f"{path} keeps the first {kept}, and the same call goes on from there"
            if not kept:
                left = f"nothing of it is {'kept, as path= would' if path is None else f'in {path} yet'}"
            return f"TunedLens.fit: interrupted after {training.done} of {plan.steps} steps; {left}"

        with told(words):
            for step in range(training.done, plan.steps):
                training.step([texts[i] for i in plan.rows(step)])
                if path is not None and (training.done % every == 0 or training.done == plan.steps):
                    training.save(path)
                    kept = training.done
        return training.lens()

    def read(self, ckpts: ActivationCkpts, *, model: Network | None = None) -> Readout:
        """Read a run's `resid_post` of every block through the lens.

        Args:
            ckpts: A run of the lens' model that captured "resid_post".
            model: The model that made the captured values, if they were saved or pickled since.

        Raises:
            UnknownNameError: If the stream was not captured.
            InputError: If the run is of another model than the lens.
        """
        read = readout(ckpts, "resid_post", model, "TunedLens.read", self._translated)
        if ckpts.provenance.get("weights") != self.about.get("weights"):
            raise InputError(
                f"TunedLens.read: the lens was fitted to {shown(self.about.get('model'))}, the run is of "
                f"{shown(ckpts.provenance.get('model'))}, or its weights were changed since.",
                code="lens-of-another-model",
                remedy="Fit a lens to this model: pl.lens.TunedLens.fit(model, texts).",
            )
        return read

    def _translated(self, stream: Tensor, layer: int) -> Tensor:
        if layer >= len(self.matrices):
            return stream
        return translated(stream, self.matrices[layer].to(stream.device), self.offsets[layer].to(stream.device))

    def save(self, path: str | Path) -> None:
        """Write the lens into one safetensors file.

        Raises:
            WeightsError: If it cannot be written.
        """
        own_file.save(path, _ABOUT, _tensors_of(self), self.about)

    @classmethod
    def load(cls, path: str | Path) -> TunedLens:
        """Read a file that `save` or `fit` wrote.

        Raises:
            NotFoundError: If there is no such file.
            WeightsError: If it cannot be opened.
            InputError: If the file holds something else, or is damaged.
        """
        with _refusing(path):
            about, tensors = own_file.load(path, _ABOUT)
            matrices, offsets, losses = (tensors[name] for name in ("matrices", "offsets", "losses"))
            fits = (
                matrices.dim() == 3 and matrices.shape[:2] == offsets.shape and matrices.shape[1] == matrices.shape[2]
            )
            if not fits or not isinstance(about["weights"], str):
                raise ValueError("its matrices and offsets do not fit together")
            return cls(matrices, offsets, losses, about)

    def __repr__(self) -> str:
        step, steps = self.about.get("step"), self.about.get("steps")
        until = "" if step == steps else f", step {step} of {steps}"
        sizes = f"{len(self.matrices)} maps of {self.offsets.size(-1)} dimensions"
        return f"TunedLens of {shown(self.about.get('model'))}: {sizes}{until}"


def _tensors_of(lens: TunedLens) -> dict[str, Tensor]:
    return {"matrices": lens.matrices, "offsets": lens.offsets, "losses": lens.losses}


def translated(stream: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """h + A h + a, for h [..., D]."""
    return stream + stream @ matrix.T.to(stream.dtype) + offset.to(stream.dtype)


@dataclass(frozen=True)
class _Plan:
    """What decides the result of a training."""

    settings: dict[str, Any]
    texts: int
    steps: int

    @classmethod
    def checked(cls, model: Any, texts: Any, seed: Any, epochs: Any, batch_size: Any, learning_rate: Any) -> _Plan:
        by = "TunedLens.fit"
        if not isinstance(model, CkptedTransformer) or model.training:
            given = "a model in training mode" if isinstance(model, CkptedTransformer) else shown(model)
            raise InputError(
                f"{by}: {given}, expected an evaluating model.",
                code="lens-model",
                remedy="Give a CkptedTransformer, after model.eval().",
            )
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise InputError(
                f"{by}: texts={shown(texts)}, expected a list of one or more texts.",
                code="lens-texts",
                remedy="Give a list; of an iterable that is gone after one pass, list(texts).",
            )
        rate = as_number(learning_rate)
        if rate is None or not 0 < rate < float("inf"):
            raise InputError(
                f"{by}: learning_rate={shown(learning_rate)}, expected a number above 0.",
                code="lens-setting",
                remedy="Leave learning_rate= out; it is 1e-3 then.",
            )
        epochs = require_whole(f"{by}: epochs", epochs, at_least=1)
        size = require_whole(f"{by}: batch_size", batch_size, at_least=1)
        read = Progress()
        for text in texts:
            read.add(text)
        settings = {
            "weights": weights_fingerprint(model), "texts": read.digest, "epochs": epochs, "batch_size": size,
            "seed": require_seed(f"{by}: seed", seed), "learning_rate": rate,
        }  # fmt: skip
        return cls(settings, len(texts), epochs * -(-len(texts) // size))

    def rows(self, step: int) -> list[int]:
        """Which texts a step reads: each epoch has an order of its own."""
        size = self.settings["batch_size"]
        epoch, place = divmod(step, -(-self.texts // size))
        generator = torch.Generator().manual_seed(self.settings["seed"])
        order = [torch.randperm(self.texts, generator=generator, device="cpu") for _ in range(epoch + 1)][-1]
        return order[place * size : (place + 1) * size].tolist()


class _Training:
    """The maps on the way, and how far they got."""

    def __init__(self, model: CkptedTransformer, plan: _Plan) -> None:
        self._model, self._plan, self.done = model, plan, 0
        blocks, width = max(len(model.schema.blocks) - 1, 0), model.schema.sizes["d_model"]
        dtype = torch.promote_types(model.dtype, torch.float32)
        self._maps = [
            torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=model.device))
            for shape in ((blocks, width, width), (blocks, width))
        ]
        self._losses = torch.zeros(plan.steps, blocks, dtype=torch.float64, device="cpu")
        self._adam = torch.optim.Adam(self._maps)

    def step(self, texts: list[Any]) -> None:
        """Read some texts, and move every map against the gradient of its own loss."""
        model, rate = self._model, self._plan.settings["learning_rate"]
        logits, ckpts = model.run_with_ckpts(texts, names="blocks.*.resid_post")
        assert logits is not None
        output, mask = logits.detach().float().log_softmax(-1), ckpts.batch.mask
        grads = [torch.zeros_like(each) for each in self._maps]
        for layer in range(len(grads[0])):
            own = [each[layer].detach().requires_grad_() for each in self._maps]
            with torch.enable_grad():
                stream = translated(ckpts[f"blocks.{layer}.resid_post"], *own)
                loss = divergence(output, model.unembed(model.ln_final(stream)))[mask].mean()
            if not bool(loss.isfinite()):
                raise InputError(
                    f"TunedLens.fit: a divergence of {loss.item()} at block {layer}, expected a finite number.",
                    code="not-finite",
                    remedy="Look for weights that are NaN or infinite, model.parameter(name).isfinite(); if there are "
                    "none, give a smaller learning_rate=.",
                )
            for grad, found in zip(grads, torch.autograd.grad(loss, own), strict=True):
                grad[layer] = found
            self._losses[self.done, layer] = loss.item()
        for each, grad in zip(self._maps, grads, strict=True):
            each.grad = grad
        self._adam.param_groups[0]["lr"] = rate * (1 - self.done / self._plan.steps)
        self._adam.step()
        self.done += 1

    def lens(self) -> TunedLens:
        """The maps as they are now."""
        where = {"model": source_of(self._model), "step": self.done, "steps": self._plan.steps}
        matrices, offsets = (each.detach().cpu().clone() for each in self._maps)
        return TunedLens(matrices, offsets, self._losses[: self.done].clone(), {**self._plan.settings, **where})

    def save(self, path: str | Path) -> None:
        """Write how far it got; once it is done, the lens alone."""
        lens = self.lens()
        tensors = _tensors_of(lens)
        if self.done < self._plan.steps:
            for number, each in enumerate(self._maps):
                held = self._adam.state[each]
                tensors |= {f"{number}.{name}": held[name].cpu().contiguous() for name in _MOMENTS}
        own_file.save(path, _ABOUT, tensors, lens.about)

    def resume(self, path: str | Path) -> None:
        """Go on where a file got to."""
        with _refusing(path):
            about, tensors = own_file.load(path, _ABOUT)
            step = require_whole("step", about["step"], at_most=self._plan.steps)
        for name, wanted in self._plan.settings.items():
            if about.get(name) != wanted:
                raise InputError(
                    f"TunedLens.fit: {str(path)!r} was fitted with {name} {shown(about.get(name))}, expected "
                    f"{shown(wanted)}.",
                    code="lens-misfit",
                    remedy="Give the model, texts and settings of that file, or a path that is free.",
                )
        with _refusing(path):
            for number, (each, name) in enumerate(zip(self._maps, ("matrices", "offsets"), strict=True)):
                with torch.no_grad():
                    each.copy_(tensors[name])
                if step < self._plan.steps:
                    moments = {moment: tensors[f"{number}.{moment}"].to(each.device).clone() for moment in _MOMENTS}
                    self._adam.state[each] = {"step": torch.tensor(float(step), device="cpu"), **moments}
            self._losses[:step] = tensors["losses"]
            self.done = step


@contextmanager
def _refusing(path: str | Path) -> Generator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, RuntimeError, InputError) as error:
        raise InputError(
            f"{str(path)!r} holds no tuned lens ({error!r}).",
            code="not-a-lens",
            remedy="Give a file that TunedLens.save or fit wrote; for fit, also a path that is free.",
        ) from error
