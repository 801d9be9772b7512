"""Statistics that are gathered from any number of texts in constant memory.

Counts and sketches merge exactly, in any order. Means and sums of powers and products merge by updates that do not
cancel (Chan, Golub & LeVeque 1983; Pébay 2008): there the order shows in the last digits only.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from pellucid import aliases
from pellucid.axes import NEURONS
from pellucid.check import as_number
from pellucid.errors import InputError, shown
from pellucid.measure.distributions import QUARTILES, require_shares
from pellucid.measure.gathering import Of, Statistic
from pellucid.measure.groups import Result
from pellucid.measure.labelled import Array, Measured
from pellucid.measure.moments import Sums, moments_dataset
from pellucid.measure.sketch import Sketch
from pellucid.measure.solve import CrossProducts
from pellucid.measure.state import state_array, state_shape

if TYPE_CHECKING:
    import xarray


class Moments(Statistic):
    """Mean, variance, skewness and excess kurtosis; the result is that of `moments`.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        of: "value", "norm" or "log_norm".
        over: The axes to sum over; texts and positions where None, which it must hold otherwise.

    Example:
        >>> import pellucid as pl
        >>> statistic = pl.measure.Moments("resid_post", of="norm")
        >>> gathered = pl.measure.stream(pl.load(), ["One text", "another"], [statistic])
        >>> gathered[0]["count"].values.tolist()
        [5, 5, 5, 5]
    """

    def __init__(self, name: aliases.Name, of: Of = "value", *, over: Collection[str] | None = None) -> None:
        super().__init__(name, of)
        self._over = self.summed(over)
        self._sums: Sums | None = None

    def _options(self) -> dict[str, Any]:
        return {"over": list(self._over)}

    def fresh(self) -> Self:
        return type(self)(self.captures, self.of, over=self._over)

    def _add(self, measured: Measured) -> None:
        sums = Sums.of(self.group(measured, self._over))
        self._sums = sums if self._sums is None else self._sums.merge(sums)

    def _absorb(self, other: Any) -> None:
        theirs = other._gathered()
        self._sums = theirs if self._sums is None else self._sums.merge(theirs)

    def _gathered(self) -> Sums:
        self.require_some()
        return cast(Sums, self._sums)

    def result(self) -> xarray.Dataset:
        """`count`, `mean`, `variance`, `skewness`, `kurtosis` over the axes that are kept."""
        return moments_dataset(self._gathered(), self.groups(self._over))

    def _state(self) -> dict[str, Array]:
        return {key: np.asarray(value) for key, value in vars(self._gathered()).items()}

    def _load(self, state: Mapping[str, Array]) -> None:
        count = state_array(state, "count", "i", self._sizes(self.kept(self.about["dims"], self._over)))
        self._sums = Sums(count, *(state_array(state, key, "f", count.shape) for key in ("mean", "m2", "m3", "m4")))


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

    def __init__(self, name: aliases.Name) -> None:
        super().__init__(name)
        self._dimension = self.axes[-1]
        if self._dimension not in NEURONS:
            raise InputError(
                f"Covariance: {self.kind} has the axes ({', '.join(self.axes)}), expected one of "
                f"{', '.join(NEURONS)} last.",
                code="no-such-axis",
                remedy="Choose a checkpoint of vectors, such as resid_post, attn.ckpt_z or mlp.ckpt_post.",
            )
        self._products: CrossProducts | None = None
        self._shape: tuple[int, ...] = ()

    def _options(self) -> dict[str, Any]:
        return {}

    def fresh(self) -> Self:
        return type(self)(self.captures)

    def _add(self, measured: Measured) -> None:
        grouped = self.group(measured, self.summed(None))  # [(L, H,) D, n]
        self._shape = grouped.shape[:-1]
        columns = grouped.reshape(-1, *grouped.shape[-2:])
        columns = columns[:, :, ~np.isnan(columns[0, 0])]  # pads are the same for all
        mean = columns.mean(2)
        away = columns - mean[:, :, None]
        self._take(CrossProducts(columns.shape[2], mean, away @ away.transpose(0, 2, 1)))

    def _take(self, products: CrossProducts) -> None:
        self._products = products if self._products is None else self._products.merge(products)

    def _absorb(self, other: Any) -> None:
        self._shape = other._shape
        self._take(other._gathered())

    def _gathered(self) -> CrossProducts:
        self.require_some()
        return cast(CrossProducts, self._products)

    def result(self) -> xarray.DataArray:
        """[(layer, head,) D, D_other]: sums of products of deviations, divided by the count."""
        products, groups = self._gathered(), self.groups(self.summed(None))
        data = (products.comoment / products.count).reshape(*self._shape, self._shape[-1])
        whole = Result(data, f"({groups.units})^2", "population covariance", (f"{self._dimension}_other",))
        array = groups.dataset({"covariance": whole})["covariance"]
        return array.assign_attrs(dict(groups.attrs) | array.attrs | {"count": products.count})

    def _state(self) -> dict[str, Array]:
        products = self._gathered()
        return {"count": np.asarray(products.count), "mean": products.mean, "comoment": products.comoment,
                "shape": np.asarray(self._shape)}  # fmt: skip

    def _load(self, state: Mapping[str, Array]) -> None:
        self._shape = state_shape(state, self._sizes(self.kept(self.about["dims"], self.summed(None))))
        self._products = CrossProducts.of_state(state, math.prod(self._shape[:-1]), self._shape[-1])


class Quantiles(Statistic):
    """Quantiles with a stated relative error, from a DDSketch (Masson, Rim & Lee 2019, arXiv:1908.10693).

    Memory grows with the range of the values of all groups, not with their number: about 8 log(max / min) / error bytes
    for each group.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        of: "value", "norm" or "log_norm".
        error: Largest relative error.
        over: The axes to sum over; texts and positions where None, which it must hold otherwise.
        quantiles: Which ones, from 0 to 1.

    Example:
        >>> import pellucid as pl
        >>> statistic = pl.measure.Quantiles("resid_post", of="norm")
        >>> gathered = pl.measure.stream(pl.load(), ["One text", "another"], [statistic])
        >>> gathered[0].sel(quantile=0.5).sizes, gathered[0].relative_error
        (Frozen({'layer': 4}), 0.01)
    """

    def __init__(
        self,
        name: aliases.Name,
        of: Of = "value",
        *,
        error: float = 0.01,
        over: Collection[str] | None = None,
        quantiles: Sequence[float] = QUARTILES,
    ) -> None:
        super().__init__(name, of)
        share = as_number(error)
        if share is None or not 1e-4 <= share < 1:
            raise InputError(
                f"Quantiles: error={shown(error)}, expected at least 0.0001 and less than 1.",
                code="sketch-error",
                remedy="Give a relative error such as 0.01.",
            )
        self._error, self._over, self._wanted = share, self.summed(over), require_shares(quantiles, "Quantiles")
        self._sketch: Sketch | None = None
        self._shape: tuple[int, ...] = ()

    def _options(self) -> dict[str, Any]:
        return {"error": self._error, "over": list(self._over), "quantiles": list(self._wanted)}

    def fresh(self) -> Self:
        return type(self)(self.captures, self.of, error=self._error, over=self._over, quantiles=self._wanted)

    def _started(self, shape: tuple[int, ...]) -> Sketch:
        if self._sketch is None:
            self._sketch, self._shape = Sketch(int(np.prod(shape)), self._error), shape
        return self._sketch

    def _add(self, measured: Measured) -> None:
        data = self.group(measured, self._over)
        self._started(data.shape[:-1]).add(data.reshape(-1, data.shape[-1]))

    def _absorb(self, other: Any) -> None:
        self._started(other._shape).merge(other._gathered())

    def _gathered(self) -> Sketch:
        self.require_some()
        return cast(Sketch, self._sketch)

    def result(self) -> xarray.DataArray:
        """[..., quantile]; of n values in order, the one numbered floor(q (n - 1)), within the relative error."""
        groups = self.groups(self._over)
        data = self._gathered().quantiles(np.asarray(self._wanted)).reshape(*self._shape, len(self._wanted))
        whole = Result(data, groups.units, "quantile", ("quantile",))
        array = groups.dataset({"quantile_value": whole})["quantile_value"].assign_coords(quantile=list(self._wanted))
        return array.assign_attrs(dict(groups.attrs) | array.attrs | {"relative_error": self._error})

    def _state(self) -> dict[str, Array]:
        return {**self._gathered().state(), "shape": np.asarray(self._shape, dtype=np.int64)}

    def _load(self, state: Mapping[str, Array]) -> None:
        shape = state_shape(state, self._sizes(self.kept(self.about["dims"], self._over)))
        state_array(state, "zeros", "i", (math.prod(shape),))  # before so many groups are made
        self._started(shape).load(state)


def covariance(ckpts: Any, name: aliases.Name) -> xarray.DataArray:
    """How a checkpoint's dimensions vary together over texts and positions, pads left out.

    With n vectors x and their mean m, sum((x - m)(x - m)') / n, in float64, as `numpy.cov` with ddof=0.

    Args:
        ckpts: What `run_with_ckpts` captured.
        name: A checkpoint of vectors.

    Returns:
        [layer, D, D_other], with `head` behind the layer where the checkpoint has heads.

    Raises:
        InputError: A checkpoint whose last axis is no vector space.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.resid_post")
        >>> dict(pl.measure.covariance(ckpts, "resid_post").sizes)
        {'layer': 4, 'd_model': 256, 'd_model_other': 256}
    """
    gathered = Covariance(name)
    gathered.update(ckpts)
    return gathered.result()
