"""What the server answers: each function takes a tab's session and a request, and returns JSON or a trace."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import torch
from torch import Tensor

from pellucid import attribution, lens, metrics
from pellucid.extras import need
from pellucid.generate.generation import Token
from pellucid.generate.request import generator_of
from pellucid.measure.labelled import find
from pellucid.open import load, to_hf
from pellucid.prove.compare import compare as compare_models
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Region, take
from pellucid.schema import Axis
from pellucid.text.batch import pieces_of
from pellucid.ties import audit_ties
from pellucid.viewer import logit_blocks
from pellucid.viewer.container import Trace
from pellucid.viewer.one_text import OneText, run_text
from pellucid.viewer.tabs import (
    Change,
    Request,
    Session,
    Tabs,
    as_written,
    edits_of,
    entry_of,
    misread,
    place_of,
    sampler_of,
    text_of,
    token_of,
)
from pellucid.viewer.traces import IN_A_PAGE, traced
from pellucid.viewer.value_blocks import principal
from pellucid.weights.hub import HubOptions

SERVED = 2 * IN_A_PAGE
"""Bytes of a trace that the server sends: it need not fit into a page."""

_LISTED = 20

Answer = Mapping[str, Any] | Trace


def run(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Run a text, perhaps with edits."""
    one = run_text(tabs.model, text_of(tabs.model, asked), _edits(tabs.model, asked))
    trace = traced(
        one, asked.get("target"), SERVED, tabs.sae
    )  # first: a target that is none leaves the tab where it was
    session.run, session.plain = one, None
    return trace


def edit(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Run the tab's text with edits: what all of them do, and each alone, beside the same done at another head.

    Edits with the same `group` count as one.
    """
    before = session.plain or tabs.run_of(session, {})
    plain = run_text(tabs.model, [before.ids]) if before.edits else before
    changed = run_text(tabs.model, [before.ids], _edits(tabs.model, asked))
    trace = traced(changed, asked.get("target"), SERVED, tabs.sae)

    def judged(changed: OneText, edits: Sequence[Change]) -> dict[str, Any]:
        effect = _effect(plain, changed)
        other = _elsewhere(tabs.model, edits) if asked.get("control", True) else None
        if other is not None:
            where, moved = other
            ran = run_text(tabs.model, [plain.ids], _edits(tabs.model, {**asked, "edits": moved}))
            effect["control"] = {**where, **_effect(plain, ran)}
        return effect

    edits = edits_of(asked)
    effects = judged(changed, edits)
    groups: dict[Any, list[Change]] = {}
    for number, one in enumerate(edits):
        groups.setdefault(one.get("group", number), []).append(one)
    if len(groups) > 1:
        alone = {name: _edits(tabs.model, {**asked, "edits": group}) for name, group in groups.items()}
        effects["each"] = [
            judged(run_text(tabs.model, [plain.ids], alone[name]), group) for name, group in groups.items()
        ]
    session.run, session.plain = changed, plain
    return {"trace": base64.b64encode(trace.to_bytes()).decode(), "effects": effects}


def _effect(plain: OneText, changed: OneText) -> dict[str, Any]:
    """KL in nats, and how far the likeliest token is before the second, without and with a change."""
    first, second = plain.logits[-1].topk(2).indices.tolist()
    batch, difference = plain.ckpts.batch, metrics.logit_difference(first, second)
    kl = metrics.kl(plain.logits[None])(changed.logits[None], batch)
    return {
        "kl": float(kl), "tokens": [first, second],
        "logit_difference": [float(difference(one.logits[None], batch)) for one in (plain, changed)],
    }  # fmt: skip


def _elsewhere(model: CkptedTransformer, edits: Sequence[Change]) -> tuple[Change, Sequence[Change]] | None:
    """The same edits at other heads and neurons of their layers, drawn with a fixed seed; None if none has any."""
    draw, schema, where, moved = random.Random(0), model.schema, dict[str, Any](), list[Change]()
    for one in edits:
        name, at = place_of(one), dict(one)
        for kind, axis in (("head", "head"), ("neuron", "d_mlp")):
            if not isinstance(one.get(kind), int) or name not in schema:
                continue
            taken = [other.get(kind) for other in edits if place_of(other) == name]
            free = [i for i in range(schema.length_of(axis, schema[name])) if i not in taken]
            if free:
                at[kind] = where[kind] = draw.choice(free)
        moved.append(at)
    return (where, moved) if where else None


def _edits(model: CkptedTransformer, asked: Request) -> list[Edit]:
    found: list[Edit] = []
    others: dict[Any, OneText] = {}
    for one in edits_of(asked):
        full, how = place_of(one), one.get("how")
        where = {key: one.get(own) for key, own in (("heads", "head"), ("neurons", "neuron"), ("pos", "pos"))}
        if how == "zero":
            found.append(Edit.zero(full, **where))
        elif how == "mean":
            found.append(Edit.mean_ablate(full, **where))
        elif how == "patch" and (one.get("other") or asked.get("other")):
            text = one.get("other") or asked["other"]
            others[text] = others.get(text) or run_text(model, as_written(model, text))
            found.append(Edit.patch(full, others[text].ckpts, **where))
        else:
            raise misread("edits", how, "'zero', 'mean', or 'patch' with another text as other")
    return found


def values(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """The exact values of a checkpoint, or of some positions and heads of it."""
    one, name = tabs.run_of(session, asked), asked.get("name")
    if not isinstance(name, str):
        raise misread("name", name, "the name of a checkpoint")
    part = Region(asked.get("pos"), asked.get("heads"))
    if name == logit_blocks.NAME and tabs.sae is not None:
        value, axes = logit_blocks.values(tabs.sae, one)[None], (Axis.BATCH, Axis.POS, Axis.FEATURE)
    else:
        value, axes = one.ckpts[name], one.ckpts.schema[name].axes
    found = take(value, part.indices(name, value.shape, axes, strict=True))[0].float().cpu()
    data = base64.b64encode(found.contiguous().numpy().astype("<f4").tobytes()).decode()
    return {"shape": list(found.shape), "dtype": "f32", "data": data}


def read_lens(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Rank and log-probability of a token through the layers; and at one cell, what heads and MLPs add to its logit."""
    one = tabs.run_of(session, asked)
    token = token_of(tabs.model, asked, "token")
    seen = [lens.logit(one.ckpts, "blocks.0.resid_pre"), lens.logit(one.ckpts)]
    shape = (-1, one.n_tokens)
    found: dict[str, Any] = {
        "rank": [row for part in seen for row in part.rank(token).values.reshape(shape).astype(int).tolist()],
        "logprob": [row for part in seen for row in part.logprobs(token).values.reshape(shape).tolist()],
    }
    if asked.get("layer") is not None:
        layer = entry_of(asked, "layer", one.ckpts.n_layer)
        found["parts"] = _at_a_cell(one, token, layer, entry_of(asked, "pos", one.n_tokens))
    return found


def _at_a_cell(one: OneText, token: Any, layer: int, pos: int) -> dict[str, Any]:
    """The parts of the logit that the lens reads from the stream behind a block; they sum to it."""
    name = f"blocks.{layer}.resid_post"
    stream = find(one.ckpts, name).tensors[0].double().cpu()
    ids = metrics.token_ids(token, one.ckpts.batch, "lens")
    wanted = one.model.parameter("unembed.W_U").detach().cpu().double()[:, int(ids[0])]
    norm: Any = one.model.get_submodule("ln_final")
    direction = norm.reads(wanted.to(norm.w.device), stream.to(norm.w.device)).detach()
    parts = attribution.direct(one.ckpts, direction, at=name, by="head")
    of, numbers = parts.component.values.tolist(), parts.values[:, 0, pos].tolist()
    if "ln_final.b" in one.model.parameter_names:
        of, numbers = (
            [*of, "ln_final.b"],
            [*numbers, float(one.model.parameter("ln_final.b").detach().cpu().double() @ wanted)],
        )
    return {"layer": layer, "pos": pos, "of": of, "values": numbers}


def attribute(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """What each component and each source token adds to a token's logit, or to the difference of two."""
    one = tabs.run_of(session, asked)
    pos, token = entry_of(asked, "pos", one.n_tokens), token_of(tabs.model, asked, "token")
    target = token if asked.get("minus") is None else (token, token_of(tabs.model, asked, "minus"))
    parts = attribution.direct(one.ckpts, target, by="head")
    sources = attribution.sources(one.ckpts, target).values[:, 0, pos]
    shape = (one.ckpts.n_layer, one.ckpts.schema.sizes["head"], one.n_tokens)
    of, components = parts.component.values.tolist(), parts.values[:, 0, pos].tolist()
    return {
        "pos": pos, "of": of, "components": components,
        "sources": _finite(torch.as_tensor(sources, device="cpu").reshape(shape)),
    }  # fmt: skip


def _finite(values: Tensor) -> list[Any]:
    return values.nan_to_num(0.0).tolist()


def sample(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Draw one token after the tab's text, and say what each stage made of the distribution."""
    one, sampler = tabs.run_of(session, asked), sampler_of(asked)
    ids = torch.tensor([one.ids], device="cpu")
    stages = sampler.explain(one.logits[-1].float(), ids)
    last = list(stages.values())[-1]
    generator = generator_of(asked.get("seed", 0), last.device)
    token = int(last.argmax()) if sampler.is_greedy else int(torch.multinomial(last, 1, generator=generator))
    text = pieces_of(tabs.model.tokenizer, [token])[0]
    return {"id": token, "text": text, "stages": _shown(tabs.model, stages)}


def _shown(model: CkptedTransformer, stages: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, probabilities in stages.items():
        top = probabilities.topk(min(_LISTED, len(probabilities)))
        ids = top.indices.tolist()
        texts, kept = pieces_of(model.tokenizer, ids), int((probabilities > 0).sum())
        found.append({"name": name, "ids": ids, "texts": texts, "probs": top.values.tolist(), "kept": kept})
    return found


def tokens(tabs: Tabs, session: Session, asked: Request) -> Iterator[Token]:
    """Continue a text, token by token, perhaps with edits; each has the stages of its choice."""
    session.cancelled = Event()
    given = {"max_new_tokens": asked["max_new_tokens"]} if asked.get("max_new_tokens") is not None else {}
    text, seed, how = text_of(tabs.model, asked), asked.get("seed", 0), sampler_of(asked)
    edits = _onwards(tabs.model, text, _edits(tabs.model, asked))
    return tabs.model.stream(text, sampler=how, seed=seed, explain=True, edits=edits, **given)


def _onwards(model: CkptedTransformer, text: Any, edits: Sequence[Edit]) -> list[Edit]:
    """The edits of a run as those of its continuation.

    The text's own tokens have the values of the edited run. What is zero or a mean at all of them is so at the tokens
    that come, too; other edits change nothing there.
    """
    if not edits:
        return []
    ran, found = run_text(model, text, edits), list[Edit]()
    for edit in edits:
        everywhere = edit.region.pos is None and edit.what != "patch"
        where = {"heads": edit.region.heads, "neurons": edit.region.neurons}
        if everywhere:
            found.append(edit if edit.what == "zero" else Edit.mean_ablate(edit.names, ran.ckpts, **where))
        if edit.what != "zero" or not everywhere:
            found.append(Edit.patch(edit.names, ran.ckpts, pos=edit.region.columns(ran.n_tokens).tolist(), **where))
    return found


def told(model: CkptedTransformer, token: Token) -> Mapping[str, Any]:
    """What is said of a token that came."""
    return {
        "id": token.id, "text": token.text, "piece": pieces_of(model.tokenizer, [token.id])[0],
        "logprob": token.logprob, "stopped": token.stopped, "stages": _shown(model, token.stages or {}),
    }  # fmt: skip


def cancel(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """End the tab's generation after the token that is being made."""
    session.cancelled.set()
    return {"cancelled": True}


def pca(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Place the tokens' vectors at any checkpoint along the three directions of most variance; and their lengths."""
    vectors = _vectors(tabs.run_of(session, asked), asked)
    points, shares = principal(vectors)
    return {"points": points.tolist(), "shares": shares.tolist(), "norms": vectors.norm(dim=1).tolist()}


def tsne(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Place the tokens' vectors in a plane, neighbours near each other (van der Maaten & Hinton 2008)."""
    vectors = _vectors(tabs.run_of(session, asked), asked, at_least=4).numpy()
    perplexity = min(max(float(asked.get("perplexity", 10)), 1.0), (len(vectors) - 1) / 3)
    maker = need("sklearn.manifold", "t-SNE").TSNE(
        perplexity=perplexity, random_state=int(asked.get("seed", 0)), init="pca"
    )
    return {"points": maker.fit_transform(vectors).tolist(), "perplexity": perplexity}


def _vectors(one: OneText, asked: Request, at_least: int = 1) -> Tensor:
    """A vector for each token [P, D] in float64; those of all heads one after another."""
    name = str(asked.get("name"))
    value = one.ckpts[name]
    if one.ckpts.schema[name].axes[1] != "pos" or one.n_tokens < at_least:
        raise misread("name", name, f"a checkpoint of vectors, of a text of {at_least} tokens or more")
    return value[0].flatten(1).double().cpu()


def compare(tabs: Tabs, session: Session, asked: Request) -> Answer:
    """Compare the model with another, which transformers runs after `hf:`, and say which of their weights are tied."""
    one = tabs.run_of(session, asked)
    name = asked.get("other")
    if not isinstance(name, str):
        raise misread("other", name, "a path or the id of a repository")
    other: Any = load(name.removeprefix("hf:"), hub=HubOptions(offline=True))
    if name.startswith("hf:"):
        other = to_hf(other)
    report: Any = compare_models(tabs.model, other, inputs=[one.ids])
    ties = [audit_ties(model) for model in (tabs.model, other)]
    return {
        "report": json.loads(report.to_json()), "said": str(report),
        "ties": [{"what": tie.what, "lines": str(tie).splitlines()[1:]} for tie in ties],
    }  # fmt: skip


POSTS: Mapping[str, Callable[[Tabs, Session, Request], Answer]] = {
    "run": run, "values": values, "lens": read_lens, "attribution": attribute, "sample": sample, "edit": edit,
    "pca": pca, "tsne": tsne, "compare": compare, "cancel": cancel,
}  # fmt: skip
"""What can be asked at /api/…, beside the stream of a generation."""
