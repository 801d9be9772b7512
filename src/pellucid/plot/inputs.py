"""What figures are drawn from: labelled arrays sorted by layer, and attention patterns without pads and future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.check import require_whole
from pellucid.errors import InputError, ShapeError, shown
from pellucid.plot.themes import xarray
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import POSITIONS, Axis, coordinate

if TYPE_CHECKING:
    from xarray import DataArray

Numbers = NDArray[np.float64]

ONE_HEAD = (str(Axis.QUERY), str(Axis.KEY))
HEADS = (str(Axis.LAYER), str(Axis.HEAD), *ONE_HEAD)

ROUNDING = 0.01
"""How far above 1 a weight may be: in bfloat16 the spacing there is 2**-7."""


@dataclass(frozen=True)
class Layers:
    """The values of each layer; pads and the first tokens that `skip` counts are left out."""

    numbers: list[Any]  # the layers' numbers; one empty text if the array has no layer axis
    values: list[Numbers]  # per layer, all its values
    array: DataArray  # the array with nan where a value was left out
    label: str  # what the values are

    @property
    def most(self) -> int:
        """Values of the layer that has most."""
        return max(map(len, self.values))

    def quantiles(self, at: Sequence[float]) -> Numbers:
        """Return the quantiles of each layer, [len(at), L]."""
        return np.stack([np.quantile(values, at) for values in self.values], axis=1)


def by_layer(where: str, array: DataArray, skip: int = 0) -> Layers:
    """Sort a labelled array by layer; whatever other axes it has are pooled.

    Raise `ShapeError` or `InputError` if it is no such array, or no finite values are left in each layer.
    """
    array = without_first(where, labelled(where, array), skip)
    layer = str(Axis.LAYER)
    stacked = array if layer in array.dims else array.expand_dims({layer: [""]})
    numbers = list(stacked[layer].values.tolist()) if layer in stacked.coords else list(range(stacked.sizes[layer]))
    values = [rows[~np.isnan(rows)] for rows in stacked.transpose(layer, ...).to_numpy()]
    empty = [str(number) for number, of_layer in zip(numbers, values, strict=True) if not len(of_layer)]
    if empty or not numbers:
        raise InputError(
            f"{where}: no values are left in layer {', '.join(empty) or '(there is none)'} "
            f"of {sizes(array)}, pads and skip={skip} left out; expected at least one a layer.",
            code="nothing-to-draw",
            remedy="Give a longer text, or a smaller skip=.",
        )
    return Layers(numbers, values, array, quantity(array))


def labelled(where: str, array: DataArray) -> DataArray:
    """Return an array in float64, nan where a value is missing; refuse infinite values."""
    if not isinstance(array, xarray().DataArray):
        raise ShapeError(
            f"{where}: {type(array).__name__} given, expected an xarray.DataArray with a layer axis.",
            code="not-labelled",
            remedy="Pass what pellucid.measure returns, or xarray.DataArray(values, dims=('layer', 'batch', 'pos')).",
        )
    numbers = array.astype("float64")
    infinite = int(np.isinf(numbers.to_numpy()).sum())
    if infinite:
        raise InputError(
            f"{where}: {infinite} infinite values in {sizes(array)}, expected finite ones, or nan at pads.",
            code="not-finite",
            remedy="Draw the norms themselves (log=False): the logarithm of a norm of zero is infinite.",
        )
    return numbers


def without_first(where: str, array: DataArray, skip: int) -> DataArray:
    """Return an array with nan at the first `skip` real positions of each text, wherever its pads are.

    They are counted by the array's coordinate `position`, if it has one (-1 at pads), else by what is not nan.
    """
    skip = require_whole(f"{where}: skip", skip, code="skip")
    if skip == 0:
        return array
    position = next((str(axis) for axis in POSITIONS if axis in array.dims), None)
    if position is None:
        raise ShapeError(
            f"{where}: skip={skip} with {sizes(array)}, expected an axis 'pos' or 'query' to skip along.",
            code="no-such-axis",
            remedy="Leave skip= out, or give an array that has positions.",
        )
    counted = array.coords.get(coordinate(position, "position"))
    if counted is None:
        others = [dim for dim in array.dims if dim not in (position, str(Axis.BATCH))]
        counted = array.notnull().any(others).cumsum(position) - 1
    return array.where(counted >= skip)


def require_run(where: str, ckpts: Any) -> ActivationCkpts:
    """Return the captured values of a run; raise `InputError` if something else was given."""
    if not isinstance(ckpts, ActivationCkpts):
        raise InputError(
            f"{where}: {type(ckpts).__name__} given, expected the captured values of a run.",
            code="not-ckpts",
            remedy="Pass the ActivationCkpts that run_with_ckpts returned.",
        )
    return ckpts


def sizes(array: DataArray) -> str:
    """Return the axes of an array with their lengths, for messages."""
    return "(" + ", ".join(f"{dim} {size}" for dim, size in array.sizes.items()) + ")"


def quantity(array: DataArray) -> str:
    """Return what an array holds, for an axis: `log norm of attn_out`."""
    whole = str(array.attrs.get("checkpoint", ""))
    checkpoint = whole.rsplit(".", 1)[-1].removeprefix("ckpt_")
    if checkpoint and whole.endswith(str(array.name)):  # the values themselves
        return checkpoint
    name = str(array.attrs.get("long_name") or array.name or "value").replace("_", " ")
    if is_log(array) and not name.startswith("log"):
        name = f"log {name}"
    return f"{name} of {checkpoint}" if checkpoint and checkpoint not in name else name


def is_log(array: DataArray) -> bool:
    """Return True if an array says that its values are logarithms."""
    return str(array.attrs.get("units", "")).startswith("log")


def as_numbers(where: str, given: Any) -> Numbers:
    """Return an array of numbers from lists, numpy or torch, in float32 if they are no wider, else in float64."""
    try:
        if isinstance(given, Tensor):  # which hands out neither gradients nor bfloat16
            narrow = given.is_floating_point() and given.element_size() <= 4
            given = (given.float() if narrow else given.double()).detach().cpu().numpy()
        numbers = np.asarray(given)
        return numbers if numbers.dtype == np.float32 else numbers.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{where}: {type(given).__name__} cannot be read as a rectangle of numbers ({error}).",
            code="not-numbers",
            remedy="Pass a tensor, an array, or lists of equal length; of captured values one, as in ckpts[name][0].",
        ) from error


def as_array(where: str, given: Any, dims: tuple[str, ...], name: str | None = None) -> DataArray:
    """Return a labelled array as it is; numbers get these axes if they have as many."""
    if isinstance(given, xarray().DataArray):
        return given
    numbers = as_numbers(where, given)
    return xarray().DataArray(numbers, dims=dims if numbers.ndim == len(dims) else None, name=name)


def require_some(where: str, array: DataArray, remedy: str) -> None:
    """Raise `InputError` if an array holds nothing but nan."""
    if not bool(array.notnull().any()):
        raise InputError(
            f"{where}: no numbers in {sizes(array)}, expected at least one.", code="nothing-to-draw", remedy=remedy
        )


def require_table(where: str, table: Any, names: Sequence[str], maker: str) -> None:
    """Raise `ShapeError` unless a table of a corpus holds what has these names."""
    if not isinstance(table, xarray().Dataset) or not all(name in table for name in names):
        raise ShapeError(
            f"{where}: {type(table).__name__} given, expected a table with {' and '.join(names)}.",
            code="corpus-table",
            remedy=f"Give what {maker} returns.",
        )


def read_patterns(where: str, given: Any, tokens: Sequence[str] | None, dims: tuple[str, ...]) -> DataArray:
    """Return weights with these axes, nan at keys that the causal mask hides, and with the tokens as coordinates.

    Raise `ShapeError` if axes or tokens are others, and `InputError` if the values are no attention weights.
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
    """Return which columns of the text are queries and keys; the last ones are queries if the array does not say."""
    query, key = ONE_HEAD
    keys = array[key].values if key in array.coords else np.arange(array.sizes[key])
    return (array[query].values if query in array.coords else keys[len(keys) - array.sizes[query] :]), keys


def _without_future(array: DataArray, weights: Numbers) -> Numbers:
    """Return weights with nan at keys behind the query, unless a weight is there."""
    queries, keys = _columns(array)
    future = keys[None, :] > queries[:, None]
    return weights if np.nansum(weights[..., future]) else np.where(future, np.nan, weights)


def _with_tokens(where: str, array: DataArray, tokens: Sequence[str] | None) -> DataArray:
    """Return an array with `query_token` and `key_token`: those that it has, or `tokens`, one for each key."""
    if tokens is None:
        return array
    query, key = ONE_HEAD
    if isinstance(tokens, str) or len(tokens) != array.sizes[key]:
        given = f"the string {shown(tokens)}" if isinstance(tokens, str) else f"{len(tokens)} tokens"
        raise ShapeError(
            f"{where}: {given} for {array.sizes[key]} keys of {sizes(array)}, expected one for each.",
            code="tokens-length",
            remedy="Pass ckpts.batch.strings[row]; of a padded text draw ckpts.to_xarray(), which leaves pads out.",
        )
    labels = texts_of(tokens)
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


def texts_of(tokens: Sequence[Any]) -> NDArray[Any]:
    """Return tokens as an array of texts, lone surrogates spelled out, which pyarrow cannot hold.

    Numpy's own strings would lose a token's last NUL.
    """
    return np.array([str(token).encode("utf-8", "backslashreplace").decode() for token in tokens], dtype=object)


def positions_of(array: DataArray, dim: str) -> list[Any]:
    """Return the positions along `query` or `key`: those that the array has, else its columns."""
    name = coordinate(dim, "position")
    if name in array.coords and array[name].ndim == 1:
        return array[name].values.tolist()
    queries, keys = _columns(array)
    return (keys if dim == str(Axis.KEY) else queries).tolist()


def tokens_of(array: DataArray, dim: str) -> list[str] | None:
    """Return the token strings along `query` or `key`, None if they are not known."""
    name = coordinate(dim, "token")
    return [str(token) for token in array[name].values] if name in array.coords else None
