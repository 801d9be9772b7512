"""Which version of transformers is followed, where versions differ."""

from __future__ import annotations

import functools
import re
from importlib import metadata

NEWEST = (5, 24)
"""The newest version that we know, followed where none is installed."""

SORTED_DRAWS = (5, 24)
"""The first version that sorts the drawn continuations of a beam search by their accumulated log-probability.

Earlier ones keep the order of the draw. Only the first `num_beams` of them may end a text, so the ids differ.
"""


@functools.cache
def followed() -> tuple[int, int]:
    """The version of transformers that is installed, `NEWEST` if there is none, without importing it."""
    try:
        found = re.match(r"(\d+)\.(\d+)", metadata.version("transformers"))
    except metadata.PackageNotFoundError:
        found = None
    return (int(found[1]), int(found[2])) if found else NEWEST
