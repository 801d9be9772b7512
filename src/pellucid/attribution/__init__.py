"""What each component adds to a logit, or to any value that is read off the residual stream, and what patching it does.

The last norm divides by the standard deviation (or root mean square) of the whole stream. With this number taken from
the run itself, what remains of the way to a logit is linear, so a logit is the sum of what each embedding, head, MLP
and bias contributes to it (Elhage et al. 2021, "A mathematical framework for transformer circuits"): `direct` and
`sources` are exact. `gradient` and `edges` estimate what patches would do, by a few backward passes.
"""

from typing import TYPE_CHECKING

from pellucid.attribution.direct import direct, sources
from pellucid.attribution.edges import edges
from pellucid.attribution.gradient import gradient
from pellucid.names.attributes import said_of
from pellucid.names.calls import ATTRIBUTION, name_arguments

__all__ = ["direct", "edges", "gradient", "sources"]

name_arguments(globals())
if not TYPE_CHECKING:
    __getattr__ = said_of(__name__, ATTRIBUTION)
