"""What each component adds to a logit, or to any value that is read off the residual stream: sums that are exact.

The last norm divides by the standard deviation (or root mean square) of the whole stream. With this number taken from
the run itself, what remains of the way to a logit is linear, so a logit is the sum of what each embedding, head, MLP
and bias contributes to it (Elhage et al. 2021, "A mathematical framework for transformer circuits").
"""

from pellucid.attribution.direct import direct
from pellucid.attribution.sources import sources

__all__ = ["direct", "sources"]
