"""Light and dark, in colours that colour-blind readers tell apart, at the width of a journal's column.

Categories take the palette of Okabe and Ito (2008, jfly.uni-koeln.de/color); layers take the part of plasma (van der
Walt and Smith 2015) that stands out from the paper; heat maps are ordered in lightness and begin near the paper, but
not on it, so a weight of zero is told from a place where no weight can be. Whatever carries data has at least
the contrast of 3 to 1 with the paper that the Web Content Accessibility Guidelines 2.1 ask of graphics (1.4.11).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pellucid.check import require_one_of
from pellucid.extras import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

COLUMN = 3.3
"""Inches: the width of one column of a two-column page."""

PAGE = 6.9
"""Inches: the width of both columns."""

LABEL = 7.0
"""Points: the size of text, which stays readable at a column's width."""

SMALL = 6.0
"""Points: the size of what is repeated, such as tokens along an axis."""

Colour = tuple[float, float, float, float]


def matplotlib() -> Any:
    """Import matplotlib at its first use."""
    return need("matplotlib", "pellucid.plot")


def pandas() -> Any:
    """Import pandas, which xarray brings."""
    return need("pandas", "pellucid.plot")


def xarray() -> Any:
    """Import xarray at its first use."""
    return need("xarray", "pellucid.plot")


@dataclass(frozen=True)
class Theme:
    """What a figure is drawn in."""

    name: str  # "light" or "dark"
    ink: str  # text and axes
    soft: str  # lines that carry no data
    paper: str  # the ground
    marks: tuple[str, ...]  # colours for categories, in order
    # a matplotlib colour map for layers, and the part of it that stands out from the paper
    layers: tuple[str, float, float]
    heat: tuple[str, ...]  # colours from zero to the largest magnitude
    signed: str  # a matplotlib colour map for values on both sides of zero, which is near the paper

    def layer_colours(self, count: int) -> list[Colour]:
        """Return a colour for each of `count` layers, the first and the last as far apart as they can be."""
        name, low, high = self.layers
        colours = matplotlib().colormaps[name]
        return [colours(low + (high - low) * i / max(count - 1, 1)) for i in range(count)]

    def heat_map(self, *, signed: bool = False) -> Colormap:
        """Return the colour map for magnitudes, or for values on both sides of zero; what is nan is left clear."""
        if signed:
            return matplotlib().colormaps[self.signed].with_extremes(bad="none")
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list(f"pellucid-{self.name}", self.heat).with_extremes(bad="none")

    def rc(self) -> dict[str, Any]:
        """Return matplotlib's settings; fonts that the reader has set come after DejaVu Sans, for what it lacks."""
        families = list(matplotlib().rcParams["font.family"])
        fallbacks = [name for name in families if name not in ("DejaVu Sans", "sans-serif")]
        return {
            "figure.facecolor": self.paper, "savefig.facecolor": "auto", "axes.facecolor": self.paper,
            "axes.edgecolor": self.ink, "axes.labelcolor": self.ink, "axes.titlecolor": self.ink,
            "text.color": self.ink, "xtick.color": self.ink, "ytick.color": self.ink, "grid.color": self.soft,
            "xtick.labelcolor": "inherit", "ytick.labelcolor": "inherit", "legend.labelcolor": self.ink,
            "font.family": ["DejaVu Sans", *fallbacks], "font.size": LABEL, "font.weight": "normal",
            "axes.titlesize": LABEL + 1, "axes.labelsize": LABEL, "xtick.labelsize": LABEL, "ytick.labelsize": LABEL,
            "axes.titleweight": "normal", "axes.labelweight": "normal", "axes.titlelocation": "left",
            "legend.fontsize": LABEL, "legend.frameon": False, "axes.grid": False, "text.usetex": False,
            "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.labelpad": 3.0,
            "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
            "hatch.linewidth": 0.5, "figure.dpi": 200, "savefig.dpi": "figure",
        }  # fmt: skip


LIGHT = Theme(
    "light", ink="#1c1e21", soft="#c4c9ce", paper="#ffffff",
    marks=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"), layers=("plasma", 0.0, 0.64),
    heat=("#dde7f2", "#b3cfe6", "#6aa6d2", "#2878b5", "#0b3c6f"), signed="RdBu_r",
)  # fmt: skip
DARK = Theme(
    "dark", ink="#e6e8ea", soft="#4a5057", paper="#16181b",
    marks=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442"), layers=("plasma", 0.42, 1.0),
    heat=("#222a33", "#1d4d78", "#2f80bd", "#7ebbe6", "#f0f8ff"), signed="berlin",
)  # fmt: skip
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}

_CURRENT: ContextVar[Theme | None] = ContextVar("theme", default=None)


@contextmanager
def theme(name: str) -> Generator[Theme, None, None]:
    """Draw what follows in a theme; matplotlib's settings are as before when the block ends.

    Figures and axes made inside, by matplotlib itself too, take the theme. Outside of a block a new figure is light,
    or dark if matplotlib's own settings have a dark ground, and axes that are given keep their look.

    Args:
        name: "light" or "dark".

    Raises:
        InputError: If there is no such theme.

    Example:
        >>> import pellucid as pl
        >>> with pl.plot.theme("dark"):
        ...     ax = pl.plot.attention([[1.0, 0.0], [0.3, 0.7]], tokens=["Once", " upon"])
        >>> ax.get_figure().get_facecolor()[:3] < (0.2, 0.2, 0.2)
        True
    """
    require_one_of("plot.theme: name", name, THEMES, code="unknown-theme")
    chosen = THEMES[name]
    token = _CURRENT.set(chosen)
    try:
        with drawn_in(chosen):
            yield chosen
    finally:
        _CURRENT.reset(token)


@contextmanager
def drawn_in(look: Theme) -> Generator[None, None, None]:
    """Give matplotlib a theme's settings for a while.

    `interactive` stays as it is at the end: a notebook's backend turns it on when the first figure is made, which may
    happen in here, and with the old value put back no later figure would be shown.
    """
    library = matplotlib()
    interactive = library.is_interactive()
    try:
        with library.rc_context(look.rc()):
            try:
                yield
            finally:
                interactive = library.is_interactive()
    finally:
        library.interactive(interactive)


def theme_for(ax: Axes | None) -> Theme:
    """Return the theme that is set, else the one that suits the ground of the axes or of matplotlib's settings."""
    chosen = _CURRENT.get()
    if chosen is not None:
        return chosen
    matplotlib()
    from matplotlib.colors import to_hex, to_rgba

    grounds = [matplotlib().rcParams["figure.facecolor"]]
    if ax is not None:
        grounds = [ax.get_facecolor(), ax.get_figure(root=True).get_facecolor()]  # pyright: ignore[reportOptionalMemberAccess]
    ground = next((to_hex(colour) for colour in grounds if to_rgba(colour)[3] > 0.5), "#ffffff")
    suits = DARK if luminance(ground) < 0.18 else LIGHT
    return suits if ax is None else replace(suits, paper=ground)


def luminance(colour: Any) -> float:
    """Return the relative luminance of a colour, 0 for black and 1 for white (WCAG 2.1)."""
    from matplotlib.colors import to_rgb

    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))
