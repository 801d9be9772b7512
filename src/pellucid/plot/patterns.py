"""Attention patterns as they are given, made one thing: labelled, without pads, without what a mask hides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.axes import Axis, coordinate
from pellucid.errors import InputError, ShapeError
from pellucid.plot.inputs import Numbers, as_numbers, sizes
from pellucid.plot.labels import token_labels
from pellucid.plot.themes import xarray

if TYPE_CHECKING:
    from xarray import DataArray

ONE_HEAD = (str(Axis.QUERY), str(Axis.KEY))
HEADS = (str(Axis.LAYER), str(Axis.HEAD), *ONE_HEAD)

ROUNDING = 0.01
"""By how much a weight in bfloat16 may seem to exceed 1: its spacing there is 2**-7."""


def read_patterns(where: str, given: Any, tokens: Sequence[str] | None, dims: tuple[str, ...]) -> DataArray:
    """Weights with these axes, nan where the causal mask lets none be, and with the tokens as coordinates.

    Raises:
        ShapeError: Other axes, or another number of tokens than keys.
        InputError: Values that are no attention weights.
    """
    array = _labelled(where, given, dims) if isinstance(given, xarray().DataArray) else _bare(where, given, dims)
    array = array if array.dtype == np.float32 else array.astype(np.float64)
    query, key = ONE_HEAD
    others = array.dims[:-2]
    array = array.isel({
        query: np.flatnonzero(array.notnull().any((*others, key)).values),
        key: np.flatnonzero(array.notnull().any((*others, query)).values),
    })  # fmt: skip
    weights = array.to_numpy()
    if not weights.size or float(np.nanmin(weights)) < 0 or float(np.nanmax(weights)) > 1 + ROUNDING:
        raise InputError(
            f"{where}: values from {_range(weights)} in {sizes(array)}, expected attention weights from 0 to 1.",
            code="not-weights",
            remedy="Pass attn.ckpt_pattern, not the scores before the softmax, and at least one real token.",
        )
    return _with_tokens(where, array.copy(data=_without_future(array, weights)), tokens)


def _range(weights: Numbers) -> str:
    return f"{np.nanmin(weights):.4g} to {np.nanmax(weights):.4g}" if weights.size else "none"


def _labelled(where: str, array: DataArray, dims: tuple[str, ...]) -> DataArray:
    array = array.squeeze([dim for dim, size in array.sizes.items() if size == 1 and dim not in dims])
    array = array.expand_dims([dim for dim in dims if dim not in array.dims and dim not in ONE_HEAD])
    if set(array.dims) != set(dims):
        raise ShapeError(
            f"{where}: axes {sizes(array)}, expected ({', '.join(dims)}).",
            code="pattern-axes",
            remedy="Choose one entry of each other axis, as in array.sel(batch=0); attention_grid draws all heads.",
        )
    return array.transpose(*dims)


def _bare(where: str, given: Any, dims: tuple[str, ...]) -> DataArray:
    numbers = as_numbers(where, given)
    shape = numbers.shape
    if len(dims) == 4 and numbers.ndim == 5 and shape[1] == 1:  # what ActivationCkpts.stack gives for one text
        numbers = numbers[:, 0]
    while len(dims) == 2 < numbers.ndim and numbers.shape[0] == 1:
        numbers = numbers[0]
    if len(dims) == 4 and numbers.ndim == 3:
        numbers = numbers[None]
    if numbers.ndim != len(dims):
        raise ShapeError(
            f"{where}: shape {list(shape)}, expected [{', '.join(dims)}].",
            code="pattern-axes",
            remedy="Choose one text and, for a single pattern, one head, as in pattern[0, 3].",
        )
    return xarray().DataArray(numbers, dims=dims)


def _columns(array: DataArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which columns of the text the queries and the keys are: the last ones are queries, where nothing else is said."""
    query, key = ONE_HEAD
    keys = array[key].values if key in array.coords else np.arange(array.sizes[key])
    return (array[query].values if query in array.coords else keys[len(keys) - array.sizes[query] :]), keys


def _without_future(array: DataArray, weights: Numbers) -> Numbers:
    """Weights with nan at keys behind the query, if nothing is there."""
    queries, keys = _columns(array)
    future = keys[None, :] > queries[:, None]
    return weights if np.nansum(weights[..., future]) else np.where(future, np.nan, weights)


def _with_tokens(where: str, array: DataArray, tokens: Sequence[str] | None) -> DataArray:
    """The array with `query_token` and `key_token`: those it has, or `tokens`, one for each key."""
    if tokens is None:
        return array
    query, key = ONE_HEAD
    if isinstance(tokens, str) or len(tokens) != array.sizes[key]:
        given = f"the string {tokens!r}" if isinstance(tokens, str) else f"{len(tokens)} tokens"
        raise ShapeError(
            f"{where}: {given} for {array.sizes[key]} keys of {sizes(array)}, expected one for each.",
            code="tokens-length",
            remedy="Pass ckpts.batch.strings[row]; of a padded text draw ckpts.to_xarray(), which leaves pads out.",
        )
    labels = np.array([str(token) for token in tokens], dtype=object)  # numpy's own strings lose a token's last NUL
    queries, keys = _columns(array)
    of_queries = dict(zip(keys.tolist(), labels, strict=True))
    if not set(queries.tolist()) <= set(of_queries):
        raise ShapeError(
            f"{where}: queries at columns that are no keys of {sizes(array)}, so that tokens for the keys name none.",
            code="tokens-length",
            remedy="Leave tokens= out: ckpts.to_xarray() brings those of queries and keys.",
        )
    found = np.array([of_queries[column] for column in queries.tolist()], dtype=object)
    return array.assign_coords(query_token=(query, found), key_token=(key, labels))


def positions_of(array: DataArray, dim: str) -> list[Any]:
    """The positions along `query` or `key`: those that the array has, else its columns."""
    name = coordinate(dim, "position")
    if name in array.coords and array[name].ndim == 1:
        return array[name].values.tolist()
    queries, keys = _columns(array)
    return (keys if dim == str(Axis.KEY) else queries).tolist()


def labels_along(array: DataArray, dim: str, room: float) -> dict[int, str]:
    """Index -> label of the tokens along `query` or `key` that fit along `room` points; none where they are unknown."""
    tokens = tokens_of(array, dim)
    return {} if tokens is None else token_labels(tokens, positions_of(array, dim), room)


def tokens_of(array: DataArray, dim: str) -> list[str] | None:
    """The token strings along `query` or `key`, None if they are not known."""
    name = coordinate(dim, "token")
    return [str(token) for token in array[name].values] if name in array.coords else None
