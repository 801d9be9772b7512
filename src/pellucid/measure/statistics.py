"""The statistics that `stream` gathers: moments, covariances, quantiles and autoregressions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import as_number, require_whole
from pellucid.errors import InputError, shown
from pellucid.measure.autoregression import fitted, panel_of
from pellucid.measure.distributions import QUARTILES, moments_dataset, require_shares
from pellucid.measure.fit import AutoregressionFit
from pellucid.measure.groups import Comoments, Result, Sketch, Sums, require_buckets
from pellucid.measure.labelled import Array
from pellucid.measure.series import Basis, Design, Factor, index_of
from pellucid.measure.statistic import Layout, Of, Statistic
from pellucid.names import aliases
from pellucid.schema import NEURONS

if TYPE_CHECKING:
    import xarray


class Moments(Statistic):
    """Mean, variance, skewness and excess kurtosis; the result is that of `moments`.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        of: "value", "norm" or "log_norm".
        over: The axes to sum over, texts and positions among them; None for these alone.

    Example:
        >>> import pellucid as pl
        >>> statistic = pl.measure.Moments("resid_post", of="norm")
        >>> gathered = pl.measure.stream(pl.load(), ["One text", "another"], [statistic])
        >>> gathered[0]["count"].values.tolist()
        [5, 5, 5, 5]
    """

    _part = Sums

    def __init__(self, name: aliases.Name, of: Of = "value", *, over: Collection[str] | None = None) -> None:
        super().__init__(name, of, over)

    def _gather(self, data: Array, array: xarray.DataArray) -> Sums:
        return Sums.of(data.reshape(-1, data.shape[-1]))

    def result(self) -> xarray.Dataset:
        """Return `count`, `mean`, `variance`, `skewness`, `kurtosis` over the axes that are kept."""
        sums = self.gathered()
        return moments_dataset(Sums(*(numbers.reshape(self._shape) for numbers in vars(sums).values())), self.groups())

    def _layout(self) -> Layout:
        size = (math.prod(self._shape),)
        return {"count": ("i", size), **dict.fromkeys(("mean", "m2", "m3", "m4"), ("f", size))}


class Covariance(Statistic):
    """How dimensions vary together over texts and positions; the result is that of `covariance`.

    Args:
        name: A checkpoint of vectors.

    Example:
        >>> import pellucid as pl
        >>> gathered = pl.measure.stream(pl.load(), ["One text", "another"], [pl.measure.Covariance("attn.ckpt_z")])
        >>> dict(gathered[0].sizes)
        {'layer': 4, 'head': 4, 'd_head': 64, 'd_head_other': 64}
    """

    _part = Comoments

    def __init__(self, name: aliases.Name) -> None:
        super().__init__(name)
        if self.axes[-1] not in NEURONS:
            raise InputError(
                f"Covariance: {name} has the axes ({', '.join(self.axes)}), expected one of {', '.join(NEURONS)} last.",
                code="no-such-axis",
                remedy="Choose a checkpoint of vectors, such as resid_post, attn.ckpt_z or mlp.ckpt_post.",
            )

    def _gather(self, data: Array, array: xarray.DataArray) -> Comoments:
        columns = data.reshape(-1, *data.shape[-2:])
        return Comoments.of(columns[:, :, ~np.isnan(columns[0, 0])])  # pads are the same for all dimensions

    def result(self) -> xarray.DataArray:
        """Return sums of products of deviations divided by the count, [(layer, head,) D, D_other]."""
        products, groups = self.gathered(), self.groups()
        data = (products.comoment / products.count).reshape(*self._shape, self._shape[-1])
        whole = Result(data, f"({groups.units})^2", "population covariance", (f"{self.axes[-1]}_other",))
        array = groups.dataset({"covariance": whole})["covariance"]
        return array.assign_attrs(dict(groups.attrs) | array.attrs | {"count": products.count})

    def _layout(self) -> Layout:
        size = (math.prod(self._shape[:-1]), self._shape[-1])
        return {"count": ("i", ()), "mean": ("f", size), "comoment": ("f", (*size, size[1]))}


class Quantiles(Statistic):
    """Quantiles with a stated relative error, from a DDSketch (Masson, Rim & Lee 2019, arXiv:1908.10693).

    Memory grows with the range of the values of all groups, not with their number: about 8 log(max / min) / error bytes
    for each group.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        of: "value", "norm" or "log_norm".
        error: The largest relative error.
        over: The axes to sum over, texts and positions among them; None for these alone.
        quantiles: Which ones, from 0 to 1.

    Example:
        >>> import pellucid as pl
        >>> statistic = pl.measure.Quantiles("resid_post", of="norm")
        >>> gathered = pl.measure.stream(pl.load(), ["One text", "another"], [statistic])
        >>> gathered[0].sel(quantile=0.5).sizes, gathered[0].relative_error
        (Frozen({'layer': 4}), 0.01)
    """

    _part = Sketch

    def __init__(
        self,
        name: aliases.Name,
        of: Of = "value",
        *,
        error: float = 0.01,
        over: Collection[str] | None = None,
        quantiles: Sequence[float] = QUARTILES,
    ) -> None:
        super().__init__(name, of, over)
        share = as_number(error)
        if share is None or not 1e-4 <= share < 1:
            raise InputError(
                f"Quantiles: error={shown(error)}, expected at least 0.0001 and less than 1.",
                code="sketch-error",
                remedy="Give a relative error such as 0.01.",
            )
        self._error, self._wanted = share, require_shares(quantiles, "Quantiles")

    def _options(self) -> dict[str, Any]:
        return {"error": self._error, "quantiles": list(self._wanted)}

    def _gather(self, data: Array, array: xarray.DataArray) -> Sketch:
        return Sketch.of(data.reshape(-1, data.shape[-1]), self._error)

    def result(self) -> xarray.DataArray:
        """Return [..., quantile]: of n values in order, the one numbered floor(q (n - 1)), within the error."""
        found = self.gathered().quantiles(np.asarray(self._wanted), self._error)
        groups = self.groups()
        whole = Result(found.reshape(*self._shape, -1), groups.units, "quantile", ("quantile",))
        array = groups.dataset({"quantile_value": whole})["quantile_value"].assign_coords(quantile=list(self._wanted))
        return array.assign_attrs(dict(groups.attrs) | array.attrs | {"relative_error": self._error})

    def _layout(self) -> Layout:
        size = (math.prod(self._shape),)
        extremes = {"least": ("f", size), "greatest": ("f", size)}
        return {"low": ("z", ()), "counts": ("i", (2, *size, None)), "zeros": ("i", size), **extremes}

    def load(self, state: Mapping[str, Array]) -> None:
        super().load(state)
        if self._held is not None:
            require_buckets(self._held, self._error)


class Autoregression(Statistic):
    """A series of norms regressed on its own past; the result is that of `autoregression` with plain errors.

    The series are not kept, so the result has no residuals, robust errors or statsmodels summary.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        lags: How many past values enter.
        skip: How many first tokens of each text to leave out.
        log: Whether to take the natural logarithm of the norms.

    Example:
        >>> import pellucid as pl
        >>> statistic = pl.measure.Autoregression("attn.ckpt_attn_out", lags=1, skip=1, log=True)
        >>> (fit,) = pl.measure.stream(pl.load(), ["Once upon a time there was a cat", "The end of it"], [statistic])
        >>> fit.nobs, list(fit.params)
        (8, ['const', 'lag1'])
    """

    _part = Factor

    def __init__(self, name: aliases.Name, lags: int = 2, skip: int = 0, *, log: bool = False) -> None:
        super().__init__(name, "log_norm" if log else "norm")
        self._lags = require_whole("Autoregression: lags", lags, code="lags-range")
        self._skip = require_whole("Autoregression: skip", skip, code="lags-range")

    def _options(self) -> dict[str, Any]:
        return {"lags": self._lags, "skip": self._skip}

    def _gather(self, data: Array, array: xarray.DataArray) -> Factor:
        return Design.of(panel_of(array, "Autoregression"), self._lags, self._skip).factor()

    def result(self) -> AutoregressionFit:
        """Return estimates and tests by layer."""
        factor = self.gathered()
        names = ("const", *(f"lag{i}" for i in range(1, self._lags + 1)))
        index = index_of(self.about["dims"], self._shape, self.about["coords"])
        basis = Basis(self._lags, self._skip, names, factor.texts, factor.short, index, dict(self.about["attrs"]))
        return fitted(factor, basis, f"{factor.texts + factor.short} texts")

    def _layout(self) -> Layout:
        size = (math.prod(self._shape), self._lags + 1)
        counts = dict.fromkeys(("count", "texts", "short"), ("i", ()))
        return {**counts, "mean": ("f", size), "triangle": ("f", (*size, size[1]))}


def covariance(ckpts: Any, name: aliases.Name) -> xarray.DataArray:
    """Return how a checkpoint's dimensions vary together over texts and positions, pads left out.

    With n vectors x and their mean m, it is sum((x - m)(x - m)') / n, in float64, as `numpy.cov` with ddof=0.

    Args:
        ckpts: What `run_with_ckpts` captured.
        name: A checkpoint of vectors.

    Returns:
        [layer, D, D_other], with `head` behind the layer if the checkpoint has heads.

    Raises:
        InputError: If the checkpoint's last axis is no vector space.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.resid_post")
        >>> dict(pl.measure.covariance(ckpts, "resid_post").sizes)
        {'layer': 4, 'd_model': 256, 'd_model_other': 256}
    """
    gathered = Covariance(name)
    gathered.update(ckpts)
    return gathered.result()
