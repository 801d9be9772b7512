"""What was fitted: terms, texts, the rows of every table, and the series themselves where they are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pellucid.extras import need
from pellucid.measure.design import Design, Panel

if TYPE_CHECKING:
    import pandas as pd
    import xarray


@dataclass(frozen=True)
class Basis:
    """What was fitted, whatever it was fitted to.

    Attributes:
        lags: How many past values enter.
        skip: How many first tokens of each text were left out.
        names: Of the parameters, the constant first.
        texts: Texts that gave rows.
        short: Texts that are too short to give one.
        dims: What the rows of the tables are, such as ("layer",).
        shape: How many along each.
        coords: Their labels.
        attrs: Provenance and units.
    """

    lags: int
    skip: int
    names: tuple[str, ...]
    texts: int
    short: int
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Mapping[str, Any]
    attrs: dict[str, Any] = field(default_factory=dict[str, Any])

    def words(self) -> str:
        """The equation."""
        terms = [self.names[0], *(f"{name} y[t-{i}]" for i, name in enumerate(self.names[1 : self.lags + 1], 1))]
        further = [f"{name} {name}[t]" for name in self.names[self.lags + 1 :]]
        measured = f"{self.attrs.get('checkpoint', 'series')} ({self.attrs.get('units', 'no units')})"
        return f"{measured}: y[t] = {' + '.join([*terms, *further])}"

    def index(self) -> pd.Index:
        """Of the rows of every table."""
        pandas = need("pandas", "autoregression")
        if not self.dims:
            return pandas.Index([0], name="series")
        labels = [self.coords.get(dim, range(size)) for dim, size in zip(self.dims, self.shape, strict=True)]
        if len(labels) == 1:
            return pandas.Index(labels[0], name=self.dims[0])
        return pandas.MultiIndex.from_product(labels, names=self.dims)


@dataclass(frozen=True)
class Data:
    """The series that were fitted; a fit made of streamed sums has none."""

    array: xarray.DataArray
    panel: Panel
    design: Design
