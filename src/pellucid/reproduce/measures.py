"""What is computed: each function gives numbers in the order in which `published.EXPERIMENTS` lists what is known."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid import attribution, circuits, heads, measure, metrics, patching
from pellucid.attribution.reading import doubles
from pellucid.circuits.ablations import Ablations, Choices
from pellucid.reproduce.study import Head, Sentences, Study, eight, two_digits, years
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Batch

if TYPE_CHECKING:
    import xarray

Z, MLP_POST = "attn.ckpt_z", "mlp.ckpt_post"
MOVERS: tuple[Head, ...] = ((9, 6), (9, 9), (10, 0))
NEGATIVE: tuple[Head, ...] = ((10, 7), (11, 10))
INHIBITION: tuple[Head, ...] = ((7, 3), (7, 9), (8, 6), (8, 10))
INDUCTION: tuple[Head, ...] = ((5, 5), (5, 8), (5, 9), (6, 9))
DUPLICATE: tuple[Head, ...] = ((0, 1), (0, 10), (3, 0))
PREVIOUS: tuple[Head, ...] = ((2, 2), (4, 11))
BACKUP: tuple[Head, ...] = ((9, 0), (9, 7), (10, 1), (10, 2), (10, 6), (10, 10), (11, 2), (11, 9))
"""The 26 heads of Wang et al. (2022, figure 2), as their repository lists them."""

Value = float | tuple[float, str]
"""A number, perhaps with the heads that it counts."""


def loss(study: Study) -> list[Value]:
    """The loss of "Hello world!"."""
    with torch.no_grad():
        return [float(study.model.loss(study.behind_bos(["Hello world!"])))]


def eight_sentences(study: Study) -> list[Value]:
    """The mean logit difference of the eight sentences, and of the same with the names exchanged."""
    eights = eight()
    metric = metrics.logit_difference(eights.answers)
    found: list[Value] = []
    for texts in (eights.texts, eights.swapped):
        found.append(float(_metric(study.model, study.behind_bos(texts), metric).mean()))
    return found


def contributions_of_heads(study: Study) -> list[Value]:
    """What heads, without what biases make them write, add to Mary's logit less John's.

    TransformerLens folds the norm's bias into b_V and this into b_O before it measures: what a head writes whatever it
    attends to, (b_V + b W_V) W_O with b of its block's norm, is no part of what it says of the head.
    """
    wanted: tuple[Head, ...] = ((9, 9), (9, 6), (10, 7), (11, 1), (11, 10), (10, 0), (10, 10), (8, 10))
    study.require(*wanted)
    end, found = _End.of(study), list[Value]()
    direction = end.read(end.W_U[:, end.mary] - end.W_U[:, end.john])
    for layer, head in wanted:
        b_V, W_V, W_O = (
            doubles(study.model.parameter(f"blocks.{layer}.attn.{name}"))[head] for name in ("b_V", "W_V", "W_O")
        )
        always = b_V + doubles(study.model.parameter(f"blocks.{layer}.ln1.b")) @ W_V
        found.append(float((doubles(end.ckpts[f"blocks.{layer}.{Z}"])[0, -1, head] - always) @ W_O @ direction))
    return found


def contributions_of_neurons(study: Study) -> list[Value]:
    """What neurons add to Mary's logit, and to John's, less the mean of all logits, because W_U is centred there."""
    study.require((11, 0), neurons=622)
    end, found = _End.of(study), list[Value]()
    post, W_out = (
        doubles(end.ckpts[f"blocks.11.{MLP_POST}"])[0, -1],
        doubles(study.model.parameter("blocks.11.mlp.W_out")),
    )
    for token, neuron in ((end.mary, 611), (end.john, 621)):
        direction = end.read(end.W_U[:, token] - end.W_U.mean(1))
        found.append(float(doubles(post[neuron]) * doubles(W_out[neuron]) @ direction))
    return found


@dataclass(frozen=True)
class _End:
    """The last token of the sentence whose parts were published."""

    model: CkptedTransformer  # what ran
    ckpts: ActivationCkpts  # its z, neurons and last stream
    W_U: Tensor  # the head [D, V] in float64
    # mary, john: the tokens of the two names
    mary: int
    john: int

    @classmethod
    def of(cls, study: Study) -> _End:
        """Run the sentence."""
        model = study.model
        batch = study.behind_bos(["When John and Mary went to the shops, John gave the bag to"])
        mary, john = (_one_token(study, name) for name in (" Mary", " John"))
        names = [f"blocks.*.{Z}", f"blocks.*.{MLP_POST}", f"blocks.{len(model.schema.blocks) - 1}.resid_post"]
        _, ckpts = model.run_with_ckpts(batch, names=names)
        return cls(model, ckpts, doubles(model.parameter("unembed.W_U")), mary, john)

    def read(self, direction: Tensor) -> Tensor:
        """What a direction [D] behind the last norm reads of the stream at the last token, [D]."""
        stream = self.ckpts[f"blocks.{len(self.model.schema.blocks) - 1}.resid_post"]
        return doubles(self.model.ln_final.reads(direction.to(stream), stream))[0, -1]


def behaviour(study: Study) -> list[Value]:
    """The mean logit difference, the share of sentences that are right, and the mean probability of the answer."""
    differences, probabilities = list[Tensor](), list[Tensor]()
    for group in study.groups:
        batch = study.model.tokenize(group.texts)
        for found, metric in (
            (differences, metrics.logit_difference(group.answers)),
            (probabilities, metrics.logprob([io for io, _ in group.answers])),
        ):
            found.append(_metric(study.model, batch, metric))
    difference, probability = torch.cat(differences), torch.cat(probabilities).exp()
    return [float(difference.mean()), float((difference > 0).double().mean()), float(probability.mean())]


def attention(study: Study) -> list[Value]:
    """The mean attention from the end: of name movers to the indirect object, of S-inhibition heads to S2."""
    study.require(*MOVERS, *INHIBITION)
    seen: dict[str, list[Tensor]] = {"io": [], "s2": []}
    for group in study.groups:
        _, ckpts = study.model.run_with_ckpts(group.texts, names="blocks.*.attn.ckpt_pattern")
        for wanted, place in ((MOVERS, "io"), (INHIBITION, "s2")):
            for layer, head in wanted:
                pattern = ckpts[f"blocks.{layer}.attn.ckpt_pattern"]
                seen[place].append(pattern[:, head, -1, getattr(group, place)].double().mean())
    return [float(torch.stack(each).mean()) for each in seen.values()]


def copying(study: Study) -> list[Value]:
    """The share of names that name movers copy, and all heads on average; the same of negative ones, times -1."""
    study.require(*MOVERS, *NEGATIVE)
    texts = [text for group in study.groups for text in group.texts]
    names = [io for group in study.groups for io, _ in group.answers]
    found = heads.name_movers(study.model, texts, names, tokens=len(texts))
    values: list[Value] = []
    for score, listed in (("copying", MOVERS), ("negative_copying", NEGATIVE)):
        values.append(float(np.mean([float(found[score][head]) for head in listed])))
        values.append(float(found[score].mean()))
    return values


def paths_to_logits(study: Study) -> list[Value]:
    """Count the listed heads among those whose direct path moves the logit difference most, down and up."""
    study.require(*MOVERS, *NEGATIVE)
    effect = _paths(study, "logits")
    return [_listed(effect, MOVERS, len(MOVERS)), _listed(-effect, NEGATIVE, len(NEGATIVE))]


def paths_to_movers(study: Study) -> list[Value]:
    """Count the listed heads among the four that change the logit difference most by the name movers' queries."""
    study.require(*MOVERS, *INHIBITION)
    queries = [("attn.ckpt_q", {"layer": layer, "head": head, "pos": -1}) for layer, head in MOVERS]
    return [_listed(_paths(study, queries), INHIBITION, len(INHIBITION))]


def paths_to_inhibition(study: Study) -> list[Value]:
    """Count the listed heads among the four that change it most by the S-inhibition heads' values."""
    study.require(*INHIBITION, *INDUCTION, *DUPLICATE)
    values = [("attn.ckpt_v", {"layer": layer, "head": head}) for layer, head in INHIBITION]
    return [_listed(_paths(study, values), (*INDUCTION, *DUPLICATE), 4)]


def detected(study: Study) -> list[Value]:
    """Induction on random ids of five heads; and of the highest tenth by other scores, how many are listed."""
    wanted: tuple[Head, ...] = ((5, 5), (6, 9), (7, 10), (5, 1), (7, 2))
    study.require(*wanted, *PREVIOUS, *DUPLICATE)
    induction = measure.induction(study.model, texts=4 * study.count, seed=study.seed)
    scores = heads.scores(study.model, [text for group in study.groups for text in group.texts], tokens=1)
    top = scores.previous.size // 10
    return [
        *(float(induction[head]) for head in wanted),
        _listed(-scores.previous, PREVIOUS, top), _listed(-scores.duplicate, DUPLICATE, top),
    ]  # fmt: skip


def knocked_out(study: Study) -> list[Value]:
    """The share of the logit difference that is lost without the name movers; and the share that all but the 26 heads,
    each at its own position, make of it.
    """
    end, s2, after_s1 = "end", "s2", "after s1"
    places = {
        **dict.fromkeys((*MOVERS, *NEGATIVE, *BACKUP, *INHIBITION), end),
        **dict.fromkeys((*INDUCTION, *DUPLICATE), s2), **dict.fromkeys(PREVIOUS, after_s1),
    }  # fmt: skip
    study.require(*places)
    layers, count = study.model.schema.sizes["layer"], study.model.schema.sizes["head"]
    every = list(itertools.product(range(layers), range(count)))
    plain, without, left = (list[Tensor]() for _ in range(3))
    for group in study.groups:
        batch, metric = study.model.tokenize(group.texts), metrics.logit_difference(group.answers)
        columns = {end: batch.shape[1] - 1, s2: group.s2, after_s1: group.s1 + 1}
        kept = {head: columns[place] for head, place in places.items()}
        means = _means(study, group)
        plain.append(_metric(study.model, batch, metric))
        without.append(_metric(study.model, batch, metric, _knocked_out(dict.fromkeys(MOVERS), means)))
        left.append(_metric(study.model, batch, metric, _knocked_out({h: kept.get(h) for h in every}, means)))
    whole = float(torch.cat(plain).mean())
    lost = [whole - float(torch.cat(each).mean()) for each in (without, left)]
    return [lost[0] / whole, abs(lost[1]) / abs(whole)]


def estimates(study: Study) -> list[Value]:
    """Pearson's correlation of estimates with patches of the eight sentences, by layer and position: of the residual
    stream, attention and MLP outputs, by attribution patching and by RelP.
    """
    eights = eight()
    clean, corrupted = study.behind_bos(eights.texts), study.behind_bos(eights.swapped)
    given: dict[str, Any] = {"over": ("layer", "pos"), "metric": metrics.logit_difference(eights.answers)}
    found: list[Value] = []
    rules: tuple[Literal["plain", "relp"], ...] = ("plain", "relp")
    for name in ("resid_pre", "attn.ckpt_attn_out", "mlp.ckpt_mlp_out"):
        true = patching.sweep(study.model, clean, corrupted, name, **given)
        effect = (true - true.attrs["corrupted"]).values.ravel()
        for rule in rules:
            estimate = attribution.gradient(study.model, clean, corrupted, name, rules=rule, **given).values.ravel()
            found.append(float(np.corrcoef(effect, estimate)[0, 1]))
    return found


def greater_than(study: Study) -> list[Value]:
    """The probability of years that come later, less that of the others."""
    clean, _, metric = _years(study)
    return [float(_metric(study.model, study.model.tokenize(clean), metric).mean())]


def edges_of_greater_than(study: Study) -> list[Value]:
    """The same of the runs in which only the 200 strongest edges are left, by EAP-IG of five steps and by EAP."""
    clean, corrupted, metric = _years(study)
    model, choices = study.model, Choices.of("edges", None, "resample", None, "noise")
    runs = Ablations(model, clean, corrupted, metric, choices)
    integrated = attribution.edges(model, clean, corrupted, metric=metric, steps=5, direction="denoise")
    single = attribution.edges(model, clean, corrupted, metric=metric, direction="noise")
    kept = [circuits.Circuit(edges=scores).top(200).edges for scores in (integrated, single)]
    return [float(one.mean()) for one in runs.keeping(kept)]


def _metric(model: CkptedTransformer, batch: Batch, metric: metrics.Metric, edits: Sequence[Edit] = ()) -> Tensor:
    """The metric [B] of a run."""
    with torch.no_grad():
        return metrics.measured(metric, model.run(batch, edits=edits), batch)


def _one_token(study: Study, text: str) -> int:
    return int(metrics.token_ids(text, study.model.tokenize(text), "reproduce")[0])


def _paths(study: Study, receivers: Any) -> xarray.DataArray:
    """[layer, head]: what each head's path to the receivers changes in the logit difference."""
    few = study.few
    metric = metrics.logit_difference(few.answers)
    given: dict[str, Any] = {"over": ("layer", "head"), "metric": metric, "direction": "noise"}
    found = patching.path(study.model, few.texts, few.others, senders=(Z, {}), receivers=receivers, **given)
    return found - found.attrs["clean"]


def _listed(scores: xarray.DataArray, listed: Collection[Head], top: int) -> Value:
    """How many of the heads with the lowest scores are among those listed, and which these heads are."""
    flat = np.nan_to_num(scores.transpose("layer", "head").values, nan=np.inf)
    order = np.argsort(flat, axis=None, kind="stable")[:top]
    lowest = [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, flat.shape), strict=True)]
    words = ", ".join(f"{layer}.{head}" for layer, head in lowest)
    return sum(head in listed for head in lowest), words


def _means(study: Study, group: Sentences) -> dict[int, Tensor]:
    """Layer -> the mean of z [P, H, K] over sentences of the same template in which no name comes twice."""
    _, ckpts = study.model.run_with_ckpts(group.others, names=f"blocks.*.{Z}")
    return {layer: ckpts[f"blocks.{layer}.{Z}"].mean(0) for layer in range(study.model.schema.sizes["layer"])}


def _knocked_out(kept: dict[Head, int | None], means: dict[int, Tensor]) -> list[Edit]:
    """Edits that put the mean in the place of these heads, but for the position that is kept of each."""
    masks = {
        layer: torch.zeros(means[layer].shape[:2], dtype=torch.bool, device="cpu")
        for layer in {head[0] for head in kept}
    }
    for (layer, head), column in kept.items():
        masks[layer][:, head] = True
        if column is not None:
            masks[layer][column, head] = False

    def put(mask: Tensor, mean: Tensor, z: Tensor) -> Tensor:
        return torch.where(mask.to(z.device)[..., None], mean, z)

    return [Edit.apply(f"blocks.{i}.{Z}", partial(put, mask, means[i])) for i, mask in masks.items()]


def _years(study: Study) -> tuple[list[list[int]], list[list[int]], metrics.Metric]:
    """Clean and corrupted sentences about years, and the probability of later ones less that of the others."""
    clean, corrupted, starts = years(study.tokenizer, 2 * study.count, study.seed)
    numbers = torch.tensor([study.tokenizer.encode(text)[0] for text in two_digits()], device="cpu")
    later = torch.arange(100, device="cpu") > torch.tensor(starts, device="cpu")[:, None]

    def metric(logits: Tensor, batch: Batch) -> Tensor:
        probabilities = logits[:, -1].softmax(-1)[:, numbers.to(logits.device)]
        return torch.where(later.to(logits.device), probabilities, -probabilities).sum(-1)

    metric.positions = (-1,)  # pyright: ignore[reportFunctionMemberAccess]
    return clean, corrupted, metric
