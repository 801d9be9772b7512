"""What was published about GPT-2 small, what computes it again, and whether the two agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from pellucid.reproduce import measures
from pellucid.reproduce.measures import Value
from pellucid.reproduce.study import Study

Relation = Literal["=", "at least", "at most"]


@dataclass(frozen=True)
class Published:
    """A number that was published about a model.

    Attributes:
        name: What it is, with its unit if it has one.
        value: The number.
        tolerance: How far from it, or on the wrong side of it, a number may be that agrees with it.
        source: Paper and section, or repository and file.
        exact: Whether it is computed of the very text that it was published of. If not, the comparison is one of kind:
            the texts are others, and the tolerance is as wide as that deserves.
        relation: "=" if the number itself was published, else the bound that it is.
    """

    name: str
    value: float
    tolerance: float
    source: str
    exact: bool = False
    relation: Relation = "="

    def agrees(self, computed: float) -> bool:
        """Whether a number is within the tolerance; NaN never is."""
        away = computed - self.value
        past = {"=": abs(away), "at least": -away, "at most": away}[self.relation]
        return past <= self.tolerance


@dataclass(frozen=True)
class Reproduced:
    """A published number beside what was computed.

    Attributes:
        published: What was published.
        computed: The number; None if there is none.
        detail: Which heads it counts, or why there is no number.
    """

    published: Published
    computed: float | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """ "within" the tolerance, "outside" of it, or "not computed"."""
        if self.computed is None:
            return "not computed"
        return "within" if self.published.agrees(self.computed) else "outside"


@dataclass(frozen=True)
class Reproduction:
    """Published numbers beside computed ones; `print` shows a table, and it is true if every number is within.

    Attributes:
        model: What was measured, in a word.
        checks: Every number, in the order of the table.
        settings: Texts, seed and so on.
        seconds: How long it took.
        interrupted: Whether Control-C ended it; what was not reached is "not computed".
    """

    model: str
    checks: tuple[Reproduced, ...]
    settings: dict[str, Any]
    seconds: float
    interrupted: bool = False

    def __bool__(self) -> bool:
        return all(check.verdict == "within" for check in self.checks)

    def counts(self) -> dict[str, int]:
        """How many numbers have each verdict."""
        return dict(Counter(check.verdict for check in self.checks))

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Verdict, what it is, what was published, what was computed, and the source of each number."""
        return [
            (check.verdict, check.published.name, _stated(check.published), _computed(check), check.published.source)
            for check in self.checks
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for programs."""
        checks = [
            {**asdict(check.published), "computed": check.computed, "detail": check.detail, "verdict": check.verdict}
            for check in self.checks
        ]
        about = {"model": self.model, "settings": self.settings, "seconds": self.seconds}
        return {**about, "interrupted": self.interrupted, "agrees": bool(self), "checks": checks}

    def __repr__(self) -> str:
        said = ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items())
        lines = [f"{self.model}: {said}" + "; interrupted" * self.interrupted]
        widths = [max(map(len, column)) for column in zip(*self.rows(), strict=True)]
        for row in self.rows():
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return "\n".join(lines)


def _stated(published: Published) -> str:
    bound = "" if published.relation == "=" else f"{published.relation} "
    return f"{bound}{_number(published.value)} ± {published.tolerance:g}" + " (kind)" * (not published.exact)


def _computed(check: Reproduced) -> str:
    if check.computed is None:
        return check.detail
    return _number(check.computed) + f" ({check.detail})" * bool(check.detail)


def _number(value: float) -> str:
    if math.isnan(value) or value == int(value):
        return f"{value:g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


IOI = "Wang et al. 2022, arXiv:2211.00593"
LENS = "TransformerLens"
RELP = "Jafari et al. 2025, arXiv:2508.21258, table of Pearson correlations"
HEADS = f"{IOI}, figure 2; Easy-Transformer, ioi_circuit_extraction.py"


@dataclass(frozen=True)
class Experiment:
    """Numbers that are computed together."""

    name: str  # what they are about
    compute: Callable[[Study], Sequence[Value]]  # gives them, in the order of `published`
    published: tuple[Published, ...]  # what was published
    runs: Callable[[Study], int]  # how many whole runs of one text take about as long; a backward pass counts as two
    slow: bool = False  # whether a quick comparison leaves it out


def _once(study: Study) -> int:
    """A run of every sentence."""
    return 2 * study.templates * study.count


def _paths(study: Study) -> int:
    """Two runs for each head, of a few sentences; on average the first of them begins in the middle."""
    size, few = study.model.schema.sizes, 2 * study.templates * study.each
    return 3 * size["layer"] * size["head"] * few // 2


def _sweeps(study: Study) -> int:
    """Three sweeps over layers and sixteen positions, each an eighth of a loop, and six gradients; eight sentences."""
    return 8 * (3 * study.model.schema.sizes["layer"] * 16 // 8 + 6 * 4)


_demo = partial(Published, source=f"{LENS}, demos/Direct_Logit_Attribution_Demo.ipynb", tolerance=1e-3, exact=True)
_eight = partial(Published, source=f"{LENS}, demos/Activation_Patching_in_TL_Demo.ipynb", tolerance=1e-3, exact=True)
_induction = partial(Published, source="designer-coderajay/induction-head-detector", tolerance=0.1)
_correlation = partial(Published, source=RELP)
_edges = partial(Published, source="EAP-IG, notebook on greater-than (1,000 sentences)", tolerance=0.15)

EXPERIMENTS = (
    Experiment("loss", measures.loss, (
        Published("loss of 'Hello world!' in nats", 5.331855773925781, 1e-4,
                  f"{LENS}, tests/acceptance/test_hooked_transformer.py", exact=True),
    ), lambda study: 1),
    Experiment("eight sentences", measures.eight_sentences, (
        _eight("mean logit difference, clean", 3.5519), _eight("mean logit difference, corrupted", -3.5519),
    ), lambda study: 16),
    Experiment("direct contributions", measures.contributions_of_heads, (
        _demo("Mary - John: head 9.9", 1.9583), _demo("Mary - John: head 9.6", 1.6281),
        _demo("Mary - John: head 10.7", -1.4267), _demo("Mary - John: head 11.1", -0.9117),
        _demo("Mary - John: head 11.10", -0.9042), _demo("Mary - John: head 10.0", 0.6370),
        _demo("Mary - John: head 10.10", 0.4524), _demo("Mary - John: head 8.10", 0.4264),
    ), lambda study: 1),
    Experiment("neurons", measures.contributions_of_neurons, (
        _demo("Mary: neuron 11.611", 0.3188), _demo("John: neuron 11.621", -0.4359),
    ), lambda study: 1),
    Experiment("behaviour", measures.behaviour, (
        Published("mean logit difference", 3.56, 1.0, f"{IOI}, section 2"),
        Published("share of sentences, IO over S", 0.993, 0.03, f"{IOI}, section 2"),
        Published("mean probability of IO", 0.49, 0.15, f"{IOI}, section 2"),
    ), _once),
    Experiment("attention", measures.attention, (
        Published("name movers' attention to IO", 0.59, 0.15, f"{IOI}, section 3.1"),
        Published("S-inhibition heads' attention to S2", 0.51, 0.15, f"{IOI}, section 3.2"),
    ), _once),
    Experiment("copying", measures.copying, (
        Published("copy score of name movers", 0.95, 0.05, f"{IOI}, section 3.1", relation="at least"),
        Published("copy score of all heads", 0.20, 0.05, f"{IOI}, section 3.1", relation="at most"),
        Published("negative copy score of 10.7, 11.10", 0.98, 0.05, f"{IOI}, section 3.1", relation="at least"),
        Published("negative copy score of all heads", 0.12, 0.08, f"{IOI}, section 3.1", relation="at most"),
    ), lambda study: 2 * _once(study)),
    Experiment("paths to the logits", measures.paths_to_logits, (
        Published("name movers 9.6 9.9 10.0 among the 3 lowest paths", 3, 1, HEADS, relation="at least"),
        Published("negative 10.7 11.10 among the 2 highest paths", 2, 0, HEADS, relation="at least"),
    ), _paths),
    Experiment("paths to the name movers", measures.paths_to_movers, (
        Published("S-inhibition 7.3 7.9 8.6 8.10 among the 4 lowest", 4, 1, HEADS, relation="at least"),
    ), _paths, slow=True),
    Experiment("paths to the S-inhibition heads", measures.paths_to_inhibition, (
        Published("induction and duplicate heads among the 4 lowest", 4, 1, HEADS, relation="at least"),
    ), _paths, slow=True),
    Experiment("detectors", measures.detected, (
        _induction("induction of 5.5", 0.932), _induction("induction of 6.9", 0.913),
        _induction("induction of 7.10", 0.910), _induction("induction of 5.1", 0.908),
        _induction("induction of 7.2", 0.833),
        Published("previous-token 2.2 4.11 among the highest tenth", 2, 1, HEADS, relation="at least"),
        Published("duplicate-token 0.1 0.10 3.0 among the highest tenth", 3, 1, HEADS, relation="at least"),
    ), lambda study: 2 * _once(study) + 28 * study.count),
    Experiment("knock-outs", measures.knocked_out, (
        Published("share that is lost without the name movers", 0.05, 0.15, f"{IOI}, section 3.4"),
        Published("share between model and circuit of 26 heads", 0.13, 0.20, f"{IOI}, section 4"),
    ), lambda study: 4 * _once(study)),
    Experiment("estimates", measures.estimates, (
        _correlation("residual stream: attribution patching", 0.753, 0.20),
        _correlation("residual stream: RelP", 0.968, 0.05),
        _correlation("attention outputs: attribution patching", 0.979, 0.05),
        _correlation("attention outputs: RelP", 0.962, 0.05),
        _correlation("MLP outputs: attribution patching", 0.195, 0.30),
        _correlation("MLP outputs: RelP", 0.992, 0.05),
    ), _sweeps),
    Experiment("greater-than", measures.greater_than, (
        _edges("probability difference of years", 0.8143, tolerance=0.1),
    ), lambda study: 2 * study.count),
    Experiment("edges of greater-than", measures.edges_of_greater_than, (
        _edges("the same, of 200 edges by EAP-IG", 0.7449), _edges("the same, of 200 edges by EAP", 0.6563),
    ), lambda study: 2 * study.count * 40, slow=True),
)  # fmt: skip
"""What was published, in the order in which it is computed."""
