"""Remedies of figures, followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import pellucid as pl
import support
from following import Case, follow, params

pytest.importorskip("matplotlib")
P = pl.plot
Here = SimpleNamespace
ONES = xr.DataArray(np.ones((2, 1, 3)), dims=("layer", "batch", "pos"))


def _norms(here: Here) -> Any:
    return pl.measure.norms(here.run, "resid_post")


def _own_norms(here: Here) -> Any:
    return pl.measure.norms(here.run, "blocks.2.resid_post").values.reshape(-1)


def _scattered(here: Here, colour: Any) -> Any:
    return P.scatter(pl.measure.values(here.run, "blocks.2.resid_post"), colour=colour)


REMEDIES: dict[str, list[Case]] = {
    "text-axes": [
        Case(
            lambda h: P.tokens(_norms(h)),
            "array.sel(layer=2, batch=0)",
            lambda h: P.tokens(_norms(h).sel(layer=1, batch=0)),
        )
    ],
    "unknown-norm": [
        Case(lambda h: P.normalization(h.run, "ln3"), "Did you mean 'ln", lambda h: P.normalization(h.run, "ln2")),
        Case(lambda h: P.normalization(h.run, "x"), "norm='ln_final'", lambda h: P.normalization(h.run, "ln_final")),
    ],
    "not-stages": [
        Case(
            lambda h: P.next_tokens(h.model.next_token_logits([[1, 2]])[0]),
            "pl.Sampler(temperature=0.8, top_k=50)",
            lambda h: P.next_tokens(
                pl.Sampler(temperature=0.8, top_k=50).explain(h.model.next_token_logits([[1, 2]])[0])
            ),
        )
    ],
    "vector-axes": [
        Case(
            lambda h: P.scatter([1.0, 2.0]),
            "pl.measure.values(ckpts, 'blocks.2.resid_post')",
            lambda h: P.scatter(pl.measure.values(h.run, "blocks.2.resid_post")),
        ),
        Case(lambda h: P.scatter([1.0, 2.0]), "model.embed.W_E", lambda h: P.scatter(h.model.embed.W_E)),
    ],
    "no-such-coordinate": [
        Case(lambda h: _scattered(h, "x"), "Give one of these", lambda h: _scattered(h, "position")),
        Case(lambda h: _scattered(h, "x"), "a number for each vector", lambda h: _scattered(h, _own_norms(h))),
    ],
    "colours-length": [
        Case(
            lambda h: _scattered(h, [1.0]),
            "pl.measure.norms(ckpts, 'blocks.2.resid_post')",
            lambda h: _scattered(h, pl.measure.norms(h.run, "blocks.2.resid_post")),
        )
    ],
    "not-counted": [
        Case(
            lambda h: P.parameters(3),
            "pl.count_parameters(model)",
            lambda h: P.parameters(pl.count_parameters(h.model)),
        ),
        Case(
            lambda h: pl.count_parameters(h.model.state_dict()),
            "pl.audit_ties counts",
            lambda h: pl.audit_ties(h.model.state_dict()).unique,
        ),
    ],
    "component-axes": [
        Case(
            lambda h: P.attribution(pl.attribution.direct(h.run, 1)),
            "parts.isel(batch=0, pos=-1)",
            lambda h: P.attribution(pl.attribution.direct(h.run, 1).isel(batch=0, pos=-1)),
        )
    ],
    "not-a-readout": [
        Case(lambda h: P.lens(h.run), "pl.lens.logit(ckpts)", lambda h: P.lens(pl.lens.logit(h.run))),
        Case(lambda h: P.lens(pl.lens.logit(h.run).kl()), ".logit(", lambda h: P.lens(pl.lens.logit(h.run))),
    ],
    "not-axes": [
        Case(
            lambda h: P.norms(h.norms, ax="here"),
            "pyplot.subplots",
            lambda h: P.norms(h.norms, ax=__import__("matplotlib.pyplot").pyplot.subplots()[1]),
        ),
        Case(lambda h: P.norms(h.norms, ax="here"), "leave ax= out", lambda h: P.norms(h.norms)),
    ],
    "nothing-drawn": [
        Case(lambda h: P.data(3), "that a function of pellucid.plot returned", lambda h: P.data(P.norms(h.norms)))
    ],
    "not-a-fit": [
        Case(
            lambda h: P.autoregression(h.norms),
            "pl.measure.autoregression",
            lambda h: P.autoregression(pl.measure.autoregression(h.norms, 1)),
        ),
        Case(
            lambda h: P.autoregression(h.fit, pvalues=3),
            "fit.corrected(...)",
            lambda h: P.autoregression(h.fit, pvalues=h.fit.corrected("bh"), terms=["lag1"]),
        ),
    ],
    "alpha": [Case(lambda h: P.autoregression(h.fit, alpha=5), "0.05", lambda h: P.autoregression(h.fit, alpha=0.05))],
    "no-coefficients": [
        Case(
            lambda h: P.autoregression(h.fit, terms=["lag9"]),
            "in terms=",
            lambda h: P.autoregression(h.fit, terms=["lag1"]),
        ),
        Case(
            lambda h: P.autoregression(pl.measure.autoregression(h.by_head, 1)),
            "choose one head before fitting",
            lambda h: P.autoregression(pl.measure.autoregression(h.by_head.sel(head=0), 1)),
        ),
    ],
    "not-norms": [Case(lambda h: P.residual_growth(ONES * 0), "Pass norms", lambda h: P.residual_growth(h.norms))],
    "skip": [Case(lambda h: P.norms(ONES, skip=-1), "0 or more", lambda h: P.norms(ONES, skip=0))],
    "nothing-to-draw": [
        Case(lambda h: P.norms(ONES, skip=3), "a smaller skip=", lambda h: P.norms(ONES, skip=2)),
        Case(
            lambda h: P.head_scores([[np.nan]]),
            "a longer text",
            lambda h: P.head_scores(pl.measure.previous_token(h.run)),
        ),
        Case(
            lambda h: P.circuit(pl.circuits.Circuit(nodes=[(0, 1)]).top(0)),
            "a larger n in .top(n)",
            lambda h: P.circuit(pl.circuits.Circuit(nodes=[(0, 1)]).top(1)),
        ),
        Case(lambda h: P.heatmap([[np.nan]]), "something was measured", lambda h: P.heatmap([[1.0, np.nan]])),
    ],
    "not-labelled": [
        Case(
            lambda h: P.norms(np.ones((2, 1, 3))),
            "xarray.DataArray(values, dims=('layer', 'batch', 'pos'))",
            lambda h: P.norms(xr.DataArray(np.ones((2, 1, 3)), dims=("layer", "batch", "pos"))),
        )
    ],
    "not-finite": [
        Case(
            lambda h: P.norms(ONES * -np.inf),
            "(log=False)",
            lambda h: P.norms(pl.measure.norms(h.run, "resid_post", log=False)),
        )
    ],
    "no-such-axis": [Case(lambda h: P.norms(ONES[..., 0], skip=1), "Leave skip= out", lambda h: P.norms(ONES[..., 0]))],
    "not-numbers": [
        Case(
            lambda h: P.attention([[1.0], [0.5, 0.5]]),
            "lists of equal length",
            lambda h: P.attention([[1.0, 0], [0.5, 0.5]]),
        ),
        Case(
            lambda h: P.attention(h.run),
            "ckpts[name][0]",
            lambda h: P.attention_grid(h.run["blocks.0.attn.ckpt_pattern"][0][None]),
        ),
    ],
    "not-weights": [
        Case(
            lambda h: P.attention(h.run["blocks.0.attn.ckpt_scores"][0, 0]),
            "attn.ckpt_pattern",
            lambda h: P.attention(h.run["blocks.0.attn.ckpt_pattern"][0, 0]),
        )
    ],
    "pattern-axes": [
        Case(
            lambda h: P.attention(h.run["blocks.0.attn.ckpt_pattern"]),
            "as in pattern[0, 3]",
            lambda h: P.attention(h.run["blocks.0.attn.ckpt_pattern"][0, 3]),
        ),
        Case(
            lambda h: P.attention_grid(h.patterns),
            "array.sel(batch=0)",
            lambda h: P.attention_grid(h.patterns.sel(batch=0)),
        ),
    ],
    "tokens-length": [
        Case(
            lambda h: P.attention(h.run["blocks.0.attn.ckpt_pattern"][0, 0], tokens=["a"]),
            "ckpts.batch.strings[row]",
            lambda h: P.attention(h.run["blocks.0.attn.ckpt_pattern"][0, 0], tokens=h.run.batch.strings[0]),
        ),
        Case(
            lambda h: P.attention(h.patterns[0, 0, 0, :, :1], tokens=["a"]),
            "Leave tokens= out",
            lambda h: P.attention(h.patterns[0, 0, 0, :, :1]),
        ),
    ],
    "not-a-circuit": [
        Case(lambda h: P.circuit([(0, 1)]), "(5, 3)", lambda h: P.circuit(pl.circuits.Circuit(nodes=[(5, 3)])))
    ],
    "matrix-axes": [
        Case(lambda h: P.heatmap(h.by_text), "array.mean('batch')", lambda h: P.heatmap(h.by_text.mean("batch")))
    ],
    "heatmap-centre": [
        Case(lambda h: P.heatmap([[1.0]], centre=np.nan), "centre=0.0", lambda h: P.heatmap([[1.0]], centre=0.0)),
        Case(lambda h: P.heatmap([[1.0]], centre="x"), "leave it out", lambda h: P.heatmap([[1.0]])),
    ],
    "score-axes": [
        Case(
            lambda h: P.head_scores(h.by_text), "scores.mean('batch')", lambda h: P.head_scores(h.by_text.mean("batch"))
        )
    ],
    "unknown-theme": [
        Case(lambda h: P.theme("drak").__enter__(), "'dark'", lambda h: P.theme("dark").__enter__()),
        Case(lambda h: P.theme("~").__enter__(), "name='light'", lambda h: P.theme("light").__enter__()),
    ],
}


@pytest.fixture(scope="module")
def here() -> Here:
    model = pl.load()
    run = model.run_with_ckpts("Once upon a time there was a cat who had a hat.")[1]
    norms, by_head = (pl.measure.norms(run, kind) for kind in ("resid_post", "attn.ckpt_z"))
    scores = pl.measure.previous_token(run)
    both = model.run_with_ckpts(["Once upon a time", "One day"], names="**.ckpt_pattern")[1]
    return Here(
        model=support.glass(),
        run=run,
        norms=norms,
        by_head=by_head,
        fit=pl.measure.autoregression(norms, 1),
        patterns=both.to_xarray()["attn.ckpt_pattern"],
        by_text=xr.concat([scores, scores], "batch"),
    )


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)
