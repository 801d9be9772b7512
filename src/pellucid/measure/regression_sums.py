"""An autoregression gathered run by run, from sums of products that merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self, cast

import numpy as np

from pellucid import aliases
from pellucid.axes import POSITIONS
from pellucid.measure.basis import Basis
from pellucid.measure.design import Design, Panel, require_adjacent, whole_number
from pellucid.measure.fit import AutoregressionFit
from pellucid.measure.gathering import Statistic
from pellucid.measure.labelled import Array, Measured
from pellucid.measure.regression import require_fitted, require_rows
from pellucid.measure.solve import CrossProducts, clear, solve
from pellucid.measure.state import state_array, state_shape

TOO_CLOSE = "its columns are too nearly dependent for sums of products; fit it in memory"


class Autoregression(Statistic):
    """A series of norms regressed on its own past; the result is that of `autoregression` with plain errors.

    Only sums are kept, so that what needs the series (residuals, robust errors, statsmodels' summary) is not there.

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

    def __init__(self, name: aliases.Name, lags: int = 2, skip: int = 0, *, log: bool = False) -> None:
        super().__init__(name, "log_norm" if log else "norm")
        self._lags, self._skip = whole_number("lags", lags), whole_number("skip", skip)
        self._products: CrossProducts | None = None
        self._texts = self._short = 0
        self._shape: tuple[int, ...] = ()

    def _options(self) -> dict[str, Any]:
        return {"lags": self._lags, "skip": self._skip}

    def fresh(self) -> Self:
        return type(self)(self.captures, self._lags, self._skip, log=self.of == "log_norm")

    def _add(self, measured: Measured) -> None:
        time = tuple(axis for axis in map(str, POSITIONS) if axis in measured.dims)
        kept = self.kept(measured.dims, ("batch", *time))
        values = measured.data.transpose([measured.dims.index(dim) for dim in (*kept, "batch", *time)])
        self._shape = values.shape[: len(kept)]
        position = measured.source.position.numpy()
        require_adjacent(position, "Autoregression")
        panel = Panel(values.reshape(-1, *values.shape[-2:]), position, kept, self._shape)
        design = Design.of(panel, self._lags, self._skip)
        fitted = len(np.unique(design.text))
        self._texts += fitted
        self._short += len(position) - fitted
        if fitted:
            self._take(design.cross_products())

    def _take(self, products: CrossProducts) -> None:
        self._products = products if self._products is None else self._products.merge(products)

    def _absorb(self, other: Any) -> None:
        self._texts += other._texts
        self._short += other._short
        self._shape = other._shape
        if other._products is not None:
            self._take(other._products)

    def result(self) -> AutoregressionFit:
        """Estimates and tests by layer.

        Raises:
            InputError: No more rows than parameters, or no layer that sums of products can fit.
        """
        self.require_some()
        names = ("const", *(f"lag{i}" for i in range(1, self._lags + 1)))
        rows = 0 if self._products is None else self._products.count
        require_rows(rows, len(names), f"{self._texts + self._short} texts", self._skip + self._lags)
        solution = solve(cast(CrossProducts, self._products))
        solution.problems[solution.doubtful] = TOO_CLOSE
        clear(solution)
        require_fitted(solution)
        coords = self.about["coords"]
        dims = tuple(dim for dim in self.about["dims"] if dim in coords and np.ndim(coords[dim]) == 1)
        attrs = dict(self.about["attrs"])
        basis = Basis(self._lags, self._skip, names, self._texts, self._short, dims, self._shape, coords, attrs)
        return AutoregressionFit(basis, solution)

    def _state(self) -> dict[str, Array]:
        counts = {"texts": np.asarray(self._texts), "short": np.asarray(self._short)}
        counts["shape"] = np.asarray(self._shape, dtype=np.int64)
        if self._products is None:
            return counts
        held = self._products
        return {**counts, "count": np.asarray(held.count), "mean": held.mean, "comoment": held.comoment}

    def _load(self, state: Mapping[str, Array]) -> None:
        self._texts, self._short = (int(state_array(state, key, "i", ())) for key in ("texts", "short"))
        time = tuple(axis for axis in map(str, POSITIONS) if axis in self.about["dims"])
        self._shape = state_shape(state, self._sizes(self.kept(self.about["dims"], ("batch", *time))))
        if "count" in state:
            self._products = CrossProducts.of_state(state, math.prod(self._shape), self._lags + 1)
