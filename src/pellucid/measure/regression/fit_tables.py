"""An autoregression's tables for people: tidy, as text, as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pellucid.extras import need

if TYPE_CHECKING:
    import pandas as pd

    from pellucid.measure.regression.fit import AutoregressionFit

SHOWN = 24
"""How many rows a printed fit shows."""


def tidy(fit: AutoregressionFit) -> pd.DataFrame:
    """Return a table with a row for each layer and parameter."""
    names, index = fit.basis.names, fit.index
    pandas = need("pandas", "to_dataframe")
    labels = index.to_frame(index=False).loc[np.repeat(np.arange(len(index)), len(names))]
    columns = {
        "estimate": fit.params, "std_error": fit.bse, "t": fit.tvalues, "p": fit.pvalues,
        "p_holm": fit.corrected("holm"), "p_bh": fit.corrected("bh"),
    }  # fmt: skip
    frame = pandas.DataFrame({name: table.to_numpy().ravel() for name, table in columns.items()})
    interval = fit.conf_int.to_numpy().reshape(-1, 2)
    frame = frame.assign(lower=interval[:, 0], upper=interval[:, 1])
    frame.insert(0, "parameter", list(names) * len(index))
    return pandas.concat([labels.reset_index(drop=True), frame], axis=1)


def text(fit: AutoregressionFit) -> str:
    """Return the fit as text, for a terminal."""
    table = _overview(fit).to_string(max_rows=SHOWN, float_format=_short, na_rep="")
    return "\n".join([*_words(fit), table])


def page(fit: AutoregressionFit) -> str:
    """Return the fit as HTML, for a notebook."""
    render: Callable[..., str] = _overview(fit).to_html
    words = "".join(f"<p>{html.escape(line)}</p>" for line in _words(fit))
    return words + render(max_rows=SHOWN, float_format=_short, na_rep="", border=0)


def _short(number: float) -> str:
    return f"{number:.4g}"


def _overview(fit: AutoregressionFit) -> pd.DataFrame:
    pandas = need("pandas", "autoregression")
    p = fit.pvalues.rename(columns=lambda name: f"p({name})")
    overview = pandas.concat([fit.params, p, fit.rsquared.rename("R2")], axis=1)
    return overview if not (fit.problems != "").any() else overview.assign(problem=fit.problems)


def _words(fit: AutoregressionFit) -> list[str]:
    errors = "plain" if fit.maxlags is None else f"Newey-West, {fit.maxlags} lags"
    texts = f"{fit.basis.texts} text{'s' * (fit.basis.texts != 1)}"
    short = f" ({fit.basis.short} more too short)" if fit.basis.short else ""
    first = fit.skip + fit.lags
    return [fit.basis.equation(), f"{fit.nobs} rows of {texts}{short}, t from {first}; standard errors: {errors}"]
