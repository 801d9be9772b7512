"""How well an autoencoder stands for a value: how sparse, how much is explained, what is lost without the error."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from pellucid.check import require_whole
from pellucid.corpus.sink import Sink, feed
from pellucid.errors import InputError
from pellucid.html.listing import counted
from pellucid.metrics import Metric, loss, measured, positions_of, units_of
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.sae_files import require_fitting
from pellucid.sae.splice import captured, heads_of

RUNS = ("plain", "with error", "reconstructed", "zero")


@dataclass(frozen=True)
class SaeReport:
    """What `evaluate` found. It prints as a table.

    Attributes:
        texts, tokens: How many were read; tokens that `skip` left out are not counted.
        l0: Active features at a token, on average.
        dead: The features that were active at no token, in order.
        explained_variance: 1 - sum |x - decode(f)|^2 / sum |x - mean x|^2 over tokens and dimensions, the mean over
            tokens.
        metric: The mean over texts of the metric in the runs "plain", "with error" (decode(f) + error in the value's
            place: the plain run), "reconstructed" (decode(f) alone) and "zero" (zeros in its place).
        recovered: (zero - reconstructed) / (zero - plain): 1 if nothing is lost without the error, 0 if as much as by
            zeros.
        metric_name, units: What the metric is, and its unit.
    """

    texts: int
    tokens: int
    l0: float
    dead: tuple[int, ...]
    features: int
    explained_variance: float
    metric: dict[str, float]
    metric_name: str
    units: str

    @property
    def recovered(self) -> float:
        """See the class."""
        zero, reconstructed, plain = (self.metric[run] for run in ("zero", "reconstructed", "plain"))
        return (zero - reconstructed) / (zero - plain) if zero != plain else float("nan")

    def __repr__(self) -> str:
        runs = ", ".join(f"{run} {value:.4g}" for run, value in self.metric.items())
        return "\n".join([
            f"{counted(self.features, 'feature')} on {counted(self.texts, 'text')}, {counted(self.tokens, 'token')}",
            f"L0                  {self.l0:.4g} active features at a token",
            f"dead                {counted(len(self.dead), 'feature')} ({100 * len(self.dead) / self.features:.3g} %)",
            f"explained variance  {self.explained_variance:.4g}",
            f"{self.metric_name:<19} {runs} ({self.units})",
            f"recovered           {self.recovered:.4g}",
        ])  # fmt: skip


def evaluate(
    sae: SparseAutoencoder,
    model: CkptedTransformer,
    texts: Iterable[Any],
    *,
    metric: Metric | None = None,
    skip: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> SaeReport:
    """Measure an autoencoder on texts: sparsity, dead features, explained variance, and what the model recovers.

    Definitions: L0 and loss recovered as in Rajamanoharan et al. 2024 (arXiv:2404.16014, section 3), explained variance
    as one minus the normalized error of Gao et al. 2024 (arXiv:2406.04093, section 2.1, in SAELens and sparsify, too).

    Args:
        sae: The autoencoder.
        model: The model that it is of.
        texts: Texts, or rows of ids, perhaps with the beginning-of-text id that it was trained with.
        metric: What is read off the runs; the loss of the next tokens if None.
        skip: Tokens at the beginning of each text that L0, dead features and variance leave out: in GPT-2 the first one
            is tens of times as long as others, and would be most of the variance.
        batch_size: How many texts run together.
        progress: Whether to draw a bar on stderr, if that is a terminal.

    Raises:
        InputError: If there are no texts, or none with a token behind those that are skipped.
        UnknownNameError, ShapeError: The model has no such checkpoint, or in another width.

    Example:
        >>> import torch
        >>> import pellucid as pl
        >>> turned = torch.linalg.qr(torch.randn(256, 256)).Q
        >>> weights = {"W_enc": torch.cat([turned, -turned], 1), "W_dec": torch.cat([turned.T, -turned.T])}
        >>> weights |= {"b_enc": torch.zeros(512), "b_dec": torch.zeros(256)}
        >>> sae = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.2.resid_pre"), weights)
        >>> report = pl.sae.evaluate(sae, pl.load(), ["Once upon a time", "The cat sat on the mat"])
        >>> round(report.explained_variance, 4), round(report.recovered, 4), round(report.l0)
        (1.0, 1.0, 256)
    """
    require_fitting(sae, model)
    require_whole("sae.evaluate: batch_size", batch_size, at_least=1)
    skip = require_whole("sae.evaluate: skip", skip)
    metric = loss() if metric is None else metric
    positions_of(metric)  # refuses what is no metric
    sums = _Sums(sae, model, metric, skip)
    read = feed(model, texts, sums, batch_size=batch_size, progress=progress, by="sae.evaluate")
    if not sums.tokens:
        raise InputError(
            f"sae.evaluate: no token is left behind the first {skip} of each text.",
            code="sae-no-tokens",
            remedy="Give longer texts, or leave skip= out.",
        )
    spread = float(sums.squares - sums.total.square().sum() / sums.tokens)
    return SaeReport(
        read.texts, sums.tokens, sums.active / sums.tokens, tuple((sums.fired == 0).nonzero().flatten().tolist()),
        sae.n_features, 1 - sums.missed / spread if spread else float("nan"),
        {run: sums.metrics[run] / read.texts for run in RUNS}, getattr(sums.metric, "__name__", repr(sums.metric)),
        units_of(sums.metric),
    )  # fmt: skip


@dataclass
class _Sums(Sink):
    """What is added up over batches, in float64."""

    sae: SparseAutoencoder
    model: CkptedTransformer
    metric: Metric
    skip: int
    tokens: int = 0
    active: int = 0
    missed: float = 0.0
    squares: float = 0.0
    metrics: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RUNS, 0.0))

    def __post_init__(self) -> None:
        self.place = self.sae.place(self.model.schema)
        self.fired = torch.zeros(self.sae.n_features, dtype=torch.long, device="cpu")
        self.total = torch.zeros(self.sae.d_in, dtype=torch.float64, device="cpu")

    @property
    def captures(self) -> Collection[str]:
        return [self.place]

    def take(self, ckpts: ActivationCkpts, texts: range) -> None:
        batch, sae = ckpts.batch, self.sae
        _, value = captured(sae, ckpts)
        counted = batch.mask & (batch.positions >= self.skip)
        with torch.no_grad():
            features, _, error = sae.split(value[counted])
            edits: dict[str, tuple[Edit, ...]] = {
                "plain": (),
                "with error": (sae.add([0], 0.0),),
                "reconstructed": (sae.reconstruct(),),
                "zero": (Edit.zero(self.place, heads=heads_of(sae)),),
            }
            for run, own in edits.items():
                logits = self.model.run(batch, edits=own)
                self.metrics[run] += float(measured(self.metric, logits, batch, of=f"the {run} run").sum())
        flat = value[counted].flatten(1).cpu().double()
        self.tokens += len(flat)
        self.active += int((features != 0).sum())
        self.fired += (features != 0).sum(0).cpu()
        self.missed += float(error.double().square().sum())
        self.squares += float(flat.square().sum())
        self.total += flat.sum(0)
