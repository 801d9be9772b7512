"""Circuits are what whole runs with edits say, to 1e-10 in float64, under every choice."""

from __future__ import annotations

from itertools import chain, combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from whole_runs import METRIC, edges_left, instead, model, nodes_left, two

import pellucid as pl
import samples
import support
from pellucid.circuits.ablations import Ablations, Choices, EdgeTap
from pellucid.circuits.circuit import Graph, kind_of

NODES = ["blocks.0.attn[1]", "blocks.0.mlp", "blocks.1.attn[0]", "blocks.1.mlp"]
EDGES = [
    ("embeddings", "blocks.0.attn.v[1]"), ("blocks.0.attn[1]", "blocks.0.mlp"),
    ("blocks.0.attn[0]", "blocks.1.attn.q[0]"), ("blocks.0.mlp", "blocks.1.attn.k[0]"),
    ("blocks.0.mlp", "blocks.1.attn.v[0]"), ("embeddings", "blocks.1.mlp"), ("blocks.1.attn[0]", "logits"),
    ("blocks.1.mlp", "logits"),
]  # fmt: skip


def report(glass: pl.CkptedTransformer, circuit: Any, **more: Any) -> Any:
    clean, corrupted = two()
    given: dict[str, Any] = {"metric": METRIC, "value": "resample", "subsets": 1, "random": 0, **more}
    return pl.circuits.evaluate(glass, circuit, clean, corrupted, **given)


def all_but(whole: Any, kept: Any, direction: str = "noise") -> list[Any]:
    """What is replaced: the rest of the clean run, or in the corrupted run what is kept."""
    return [part for part in whole if (part in kept) == (direction == "denoise")]


def scaled(found: torch.Tensor, nothing: torch.Tensor, whole: torch.Tensor) -> float:
    return float((found.mean() - nothing.mean()) / (whole.mean() - nothing.mean()))


def plain(glass: pl.CkptedTransformer, ids: Any) -> torch.Tensor:
    return METRIC(glass(ids).detach(), glass.tokenize(ids))


@pytest.mark.parametrize("value", ["resample", "mean", "zero"])
@pytest.mark.parametrize("components", [None, ["heads"], ["embeddings", "mlps"]], ids=str)
def test_nodes_by_whole_runs(value: str, components: Any) -> None:
    glass, (clean, corrupted) = model(), two()
    found = report(glass, pl.circuits.Circuit(nodes=NODES[:3]), value=value, components=components)
    kinds = components or ["heads", "mlps"]
    whole = [node for node in Graph(glass.schema).nodes if _kind(node) in kinds]
    other = instead(glass, corrupted, value)
    left = nodes_left(glass, clean, other, all_but(whole, NODES[:3]))
    nothing = plain(glass, corrupted) if value == "resample" else nodes_left(glass, clean, other, whole)
    assert found.left == pytest.approx(float(left.mean()), abs=1e-10)
    assert found.without == pytest.approx(
        float(nodes_left(glass, clean, other, set(NODES[:3]) & {*whole}).mean()), abs=1e-10
    )
    assert found.nothing == pytest.approx(float(nothing.mean()), abs=1e-10)
    assert found.faithfulness == pytest.approx(scaled(left, nothing, plain(glass, clean)), abs=1e-9)
    each = (left - nothing) / (plain(glass, clean) - nothing)
    np.testing.assert_allclose(found.by_text, each, rtol=0, atol=1e-9)
    assert (found.size, found.universe) == (len({*NODES[:3]} & {*whole}), len(whole))


def _kind(node: str) -> str:
    return "embeddings" if node == "embeddings" else "mlps" if node.endswith("mlp") else "heads"


@pytest.mark.parametrize("value", support.few_of(["resample", "mean", "zero"], "resample"))
def test_edges_by_whole_runs(value: str) -> None:
    glass, (clean, corrupted) = model(), two()
    found = report(glass, pl.circuits.Circuit(edges=EDGES), value=value)
    whole, other = Graph(glass.schema).edges, instead(glass, corrupted, value)
    left = edges_left(glass, clean, other, all_but(whole, EDGES))
    nothing = plain(glass, corrupted) if value == "resample" else edges_left(glass, clean, other, whole)
    assert found.left == pytest.approx(float(left.mean()), abs=1e-10)
    assert found.without == pytest.approx(float(edges_left(glass, clean, other, EDGES).mean()), abs=1e-10)
    assert found.faithfulness == pytest.approx(scaled(left, nothing, plain(glass, clean)), abs=1e-9)
    assert abs(float(left.mean()) - found.whole) > 1e-3


@pytest.mark.parametrize("components", [["heads"], ["mlps", "embeddings"]], ids=str)
def test_edges_of_some_senders(components: list[str]) -> None:
    glass, (clean, corrupted) = model(), two()
    found = report(glass, pl.circuits.Circuit(edges=EDGES), components=components)
    whole = [edge for edge in Graph(glass.schema).edges if _kind(edge[0]) in components]
    left = edges_left(glass, clean, instead(glass, corrupted, "resample"), all_but(whole, EDGES))
    assert found.left == pytest.approx(float(left.mean()), abs=1e-10)
    assert found.universe == len(whole)


@pytest.mark.parametrize(
    ("granularity", "direction", "pos"),
    support.few_of(
        product(("nodes", "edges"), ("noise", "denoise"), (None, -1, [1, 3])),
        "nodes",
        ("edges", "noise", -1),
        ("edges", "denoise", [1, 3]),
    ),
    ids=str,
)
def test_positions_and_directions(granularity: str, direction: str, pos: Any) -> None:
    glass, (clean, corrupted) = model(), two()
    circuit = pl.circuits.Circuit(nodes=NODES) if granularity == "nodes" else pl.circuits.Circuit(edges=EDGES)
    found = report(glass, circuit, direction=direction, pos=pos)
    base, source = (clean, corrupted) if direction == "noise" else (corrupted, clean)
    graph, other, columns = Graph(glass.schema), instead(glass, source, "resample"), [4] if pos == -1 else pos
    if granularity == "nodes":
        left = nodes_left(glass, base, other, all_but(graph.nodes[1:], NODES, direction), columns)
    else:
        left = edges_left(glass, base, other, all_but(graph.edges, EDGES, direction), columns)
    assert found.left == pytest.approx(float(left.mean()), abs=1e-10)


def test_texts_with_pads() -> None:
    glass, seeds = model(), (0, 50)
    clean, corrupted = (glass.tokenize(support.ragged_ids(3, 6, 5, seed=seed)) for seed in seeds)
    whole, other = Graph(glass.schema), instead(glass, corrupted, "mean")
    about: dict[str, Any] = {"metric": METRIC, "value": "mean", "subsets": 1, "random": 0}
    found = pl.circuits.evaluate(glass, pl.circuits.Circuit(edges=EDGES), clean, corrupted, **about)
    left = edges_left(glass, clean, other, all_but(whole.edges, EDGES))
    assert found.left == pytest.approx(float(left.mean()), abs=1e-10)
    found = pl.circuits.evaluate(glass, pl.circuits.Circuit(nodes=NODES), clean, corrupted, **about)
    assert found.left == pytest.approx(float(nodes_left(glass, clean, other, all_but(whole.nodes[1:], NODES)).mean()))


def test_a_llama_whose_heads_share_keys() -> None:
    """Within the rounding of float32, in which its norms compute whatever the model's dtype is."""
    glass = samples.glass("llama", dtype=torch.float64, num_hidden_layers=2)
    graph, size = Graph(glass.schema), glass.schema.sizes["d_vocab"]
    clean, corrupted = (support.some_ids(2, 5, size, seed) for seed in (0, 5))
    kept = [edge for edge in graph.edges if edge[1] not in graph.receivers[::6]]
    runs = Ablations(glass, clean, corrupted, METRIC, Choices.of("edges", None, "resample", None, "noise"))
    left = edges_left(glass, clean, instead(glass, corrupted, "resample"), all_but(graph.edges, kept))
    np.testing.assert_allclose(runs.keeping([kept])[0], left, rtol=0, atol=1e-5)
    assert len(graph.holders("blocks.0.attn.k[0]")) == glass.schema.sizes["head"] // glass.schema.sizes["head_kv"]
    nodes = Ablations(glass, clean, corrupted, METRIC, Choices.of("nodes", None, "resample", None, "noise"))
    some = graph.nodes[1::2]
    left = nodes_left(glass, clean, instead(glass, corrupted, "resample"), all_but(graph.nodes[1:], some))
    np.testing.assert_allclose(nodes.keeping([some])[0], left, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parallel", [True, False])
def test_mlps_beside_their_heads_and_behind_them(parallel: bool) -> None:
    glass = samples.glass("gpt_neox", dtype=torch.float64, num_hidden_layers=2, use_parallel_residual=parallel)
    graph, size = Graph(glass.schema), glass.schema.sizes["d_vocab"]
    clean, corrupted = (support.some_ids(2, 5, size, seed) for seed in (0, 5))
    assert (("blocks.0.attn[1]", "blocks.0.mlp") in graph.edges) != parallel
    kept = [edge for edge in graph.edges if edge[1] not in graph.receivers[::2]]
    runs = Ablations(glass, clean, corrupted, METRIC, Choices.of("edges", None, "resample", None, "noise"))
    left = edges_left(glass, clean, instead(glass, corrupted, "resample"), all_but(graph.edges, kept))
    np.testing.assert_allclose(runs.keeping([kept])[0], left, rtol=0, atol=1e-10)
    scores = pl.attribution.edges(glass, clean, corrupted, metric=METRIC)
    assert set(pl.circuits.Circuit(edges=scores).edges) == set(graph.edges)


def test_all_of_it_is_the_model_and_nothing_is_the_other_run() -> None:
    glass, (clean, corrupted) = model(), two()
    every = pl.circuits.Circuit(edges=Graph(glass.schema).edges)
    for direction in ("noise", "denoise"):
        found = report(glass, every, direction=direction)
        assert found.faithfulness == pytest.approx(1.0, abs=1e-10)
        empty = report(glass, pl.circuits.Circuit(edges=[]), direction=direction)
        assert empty.faithfulness == pytest.approx(0.0, abs=1e-10)
        assert empty.left == pytest.approx(float(plain(glass, corrupted).mean()), abs=1e-10)
    assert found.whole == pytest.approx(float(plain(glass, clean).mean()), abs=1e-10)
    assert report(glass, pl.circuits.Circuit(nodes=[]), value="zero").faithfulness == 0.0


def subsets_of(parts: Any) -> list[tuple[Any, ...]]:
    return list(chain.from_iterable(combinations(parts, count) for count in range(len(parts) + 1)))


def test_completeness_and_minimality_by_their_definitions() -> None:
    """Enough subsets are drawn that each of the sixteen is among them."""
    glass, (clean, corrupted) = model(), two()
    nodes, other = Graph(glass.schema).nodes[1:], instead(glass, corrupted, "resample")

    def metric_of(kept: Any) -> float:
        return float(nodes_left(glass, clean, other, all_but(nodes, kept)).mean())

    gaps = {
        tuple(out): abs(metric_of({*NODES} - {*out}) - metric_of({*nodes} - {*out})) for out in subsets_of(NODES)
    }  # fmt: skip
    found = report(glass, pl.circuits.Circuit(nodes=NODES), subsets=200, random=8)
    assert found.completeness.most == pytest.approx(max(gaps.values()), abs=1e-10)
    assert gaps[tuple(found.completeness.parts)] == pytest.approx(found.completeness.most, abs=1e-10)
    assert found.completeness.count == 200
    assert found.greedy.most == pytest.approx(gaps[tuple(found.greedy.parts)], abs=1e-10)
    assert found.greedy.most >= gaps[()]
    for part in NODES:
        rest = [other_part for other_part in NODES if other_part != part]
        most = max(
            abs(metric_of({*NODES} - {*out, part}) - metric_of({*NODES} - {*out})) for out in subsets_of(rest)
        )  # fmt: skip
        assert found.minimality[part] == pytest.approx(most, abs=1e-10)
    assert list(found.minimality) == NODES


def test_a_greedy_search_grows_by_what_raises_most() -> None:
    glass, (clean, corrupted) = model(), two()
    nodes, other = Graph(glass.schema).nodes[1:], instead(glass, corrupted, "resample")

    def gap(out: Any) -> float:
        left = nodes_left(glass, clean, other, all_but(nodes, {*NODES} - {*out}))
        return abs(float(left.mean() - nodes_left(glass, clean, other, all_but(nodes, {*nodes} - {*out})).mean()))

    chosen: list[str] = []
    while rest := [node for node in NODES if node not in chosen]:
        best = max(rest, key=lambda node: gap([*chosen, node]))
        if gap([*chosen, best]) <= gap(chosen):
            break
        chosen.append(best)
    found = report(glass, pl.circuits.Circuit(nodes=NODES)).greedy
    assert set(found.parts) == set(chosen)
    assert found.most == pytest.approx(gap(chosen), abs=1e-10)


def test_a_greedy_search_tries_as_many_as_it_is_told() -> None:
    """One after another: the gap without any part, then a candidate of each step, of which the last one ends it."""
    glass = model()
    few = report(glass, pl.circuits.Circuit(nodes=NODES), candidates=1).greedy
    assert few.count <= 1 + len(NODES)
    every = report(glass, pl.circuits.Circuit(nodes=NODES), candidates=None).greedy
    assert every == report(glass, pl.circuits.Circuit(nodes=NODES), candidates=len(NODES)).greedy
    assert every.most >= few.most


def test_many_texts_are_run_in_blocks() -> None:
    """What every sender wrote is in memory at once, so long batches are cut; the metric still sees all texts."""
    glass, (clean, corrupted) = model(), two(texts=120)
    tokens: list[int] = []
    glass.embed.register_forward_pre_hook(lambda _, given: tokens.append(given[0].numel()))
    many = pl.circuits.across(
        glass, pl.circuits.Circuit(edges=EDGES), clean, corrupted, metric=METRIC, values=["resample"],
        granularities=["edges"], directions=["noise"],
    ).values.ravel()  # fmt: skip
    assert max(tokens[2:]) <= 384 < clean.numel(), "the plain runs are whole"
    assert sum(tokens[2:]) == clean.numel()
    left = edges_left(glass, clean, instead(glass, corrupted, "resample"), all_but(Graph(glass.schema).edges, EDGES))
    nothing = plain(glass, corrupted)
    np.testing.assert_allclose(many, (left - nothing) / (plain(glass, clean) - nothing), rtol=0, atol=1e-8)


def test_choices_share_their_plain_runs() -> None:
    glass, (clean, corrupted) = model(), two()
    runs: list[int] = []
    glass.embed.register_forward_pre_hook(lambda *_: runs.append(1))
    pl.circuits.across(
        glass, pl.circuits.Circuit(edges=EDGES), clean, corrupted, metric=METRIC, granularities=["edges"],
        components=["heads", "mlps"], values=["resample"],
    )  # fmt: skip
    assert len(runs) == 2 * 2 + 2 * 2, "two plain runs for each direction, and one for each circuit that is left"


def test_random_circuits_have_as_many_of_each_kind() -> None:
    """So all heads without an MLP are the only circuit of their size, and so is an MLP with all heads but none."""
    glass = model()
    heads = [node for node in Graph(glass.schema).nodes if "attn" in node]
    found = report(glass, pl.circuits.Circuit(nodes=heads), random=5)
    np.testing.assert_allclose(found.random, [found.faithfulness] * 5, rtol=0, atol=1e-10)
    one = report(glass, pl.circuits.Circuit(nodes=["blocks.0.mlp"]), random=12)
    two_of_them = {report(glass, pl.circuits.Circuit(nodes=[f"blocks.{i}.mlp"])).faithfulness for i in (0, 1)}
    assert {round(value, 9) for value in one.random} == {round(value, 9) for value in two_of_them}
    assert report(glass, pl.circuits.Circuit(edges=EDGES), random=7, seed=3).random == report(
        glass, pl.circuits.Circuit(edges=EDGES), random=7, seed=3
    ).random  # fmt: skip


def test_a_random_circuit_has_the_scores_of_the_other() -> None:
    glass = model()
    nodes = pl.circuits.Circuit(nodes=NODES)
    nodes.nodes.update({node: 2.0 + i for i, node in enumerate(nodes.nodes)})
    edges = pl.circuits.Circuit(edges=EDGES)
    for circuit in (nodes, edges):
        several = [circuit.drawn(glass, seed) for seed in range(6)]
        assert all(sorted(one.parts.values()) == sorted(circuit.parts.values()) for one in several)
        assert len({frozenset(one.parts) for one in several}) > 1
        assert circuit.drawn(glass, 3).parts == several[3].parts
        for one in several:
            pl.circuits.Circuit.checked(one, Graph(glass.schema))
    of_score = {score: node for node, score in nodes.nodes.items()}
    assert all(kind_of(node) == kind_of(of_score[score]) for node, score in nodes.drawn(glass, 4).nodes.items())


def test_a_reader_that_no_value_comes_by_is_said() -> None:
    """No edge into queries can be patched if a module keeps them from passing through their checkpoint."""
    glass = model()
    glass.blocks[1].attn.ckpt_q.forward = lambda value, tap=None: value
    with pytest.raises(pl.EditError, match=r"never fired: blocks\.1\.attn\.ckpt_q"):
        report(glass, pl.circuits.Circuit(edges=EDGES))


def test_what_is_missing_is_said_in_the_words_of_the_verb_that_is_named() -> None:
    with pytest.raises(pl.UnknownArgumentError, match=r"Give metric=: What to read off .* Give value=: What is put in"):
        pl.circuits.curve(support.glass(), [], "a", "b")  # pyright: ignore[reportCallIssue]


def test_the_areas_of_a_curve() -> None:
    glass, (clean, corrupted) = model(), two()
    scores = pl.attribution.edges(glass, clean, corrupted, metric=METRIC)
    graph, other = Graph(glass.schema), instead(glass, corrupted, "resample")
    assert set(pl.circuits.Circuit(edges=scores).edges) == set(graph.edges), "what is scored is what there is"
    shares = [0.1, 0.4, 1.0]
    found = pl.circuits.curve(glass, scores, clean, corrupted, metric=METRIC, value="resample", shares=shares)
    strongest = sorted(
        graph.edges, key=lambda e: -abs(float(scores.sel(sender=e[0], receiver=e[1])))
    )  # fmt: skip
    expected = []
    for share in shares:
        left = edges_left(glass, clean, other, all_but(graph.edges, strongest[: round(share * len(strongest))]))
        expected.append(scaled(left, plain(glass, corrupted), plain(glass, clean)))
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-9)
    first, second, third = expected
    assert found.attrs["cpr"] == pytest.approx(0.3 * (first + second) / 2 + 0.6 * (second + third) / 2, abs=1e-9)
    away = [abs(1 - value) for value in expected]
    assert found.attrs["cmd"] == pytest.approx(0.3 * (away[0] + away[1]) / 2 + 0.6 * (away[1] + away[2]) / 2, abs=1e-9)


def test_every_choice_can_be_gone_over() -> None:
    glass, (clean, corrupted) = model(), two()
    circuit = pl.circuits.Circuit(nodes=NODES)
    found = pl.circuits.across(
        glass, circuit, clean, corrupted, metric=METRIC, components=["heads", ["heads", "mlps"]], positions=[None, -1]
    )
    assert found.sizes == {"granularity": 2, "component": 2, "value": 3, "position": 2, "direction": 2, "batch": 2}
    assert found.sel(direction="denoise", value=["mean", "zero"]).isnull().all()
    for granularity in ("nodes", "edges"):
        one = report(glass, circuit, granularity=granularity, value="mean", pos=-1, components="heads")
        row = found.sel(granularity=granularity, value="mean", direction="noise").isel(component=0, position=1)
        np.testing.assert_allclose(row, one.by_text, rtol=0, atol=1e-10)
    assert one.choices == Choices("edges", ("heads",), "mean", -1, "noise")


def test_parts_from_scores() -> None:
    glass, (clean, corrupted) = model(), two()
    about: dict[str, Any] = {"metric": METRIC}
    heads = pl.patching.sweep(glass, clean, corrupted, "z", over=("layer", "head"), **about)
    mlps = pl.attribution.gradient(glass, clean, corrupted, "mlp.ckpt_mlp_out", over=("layer",), **about)
    circuit = pl.circuits.Circuit(nodes=[heads, mlps])
    assert list(circuit.nodes) == list(Graph(glass.schema).nodes[1:])
    for (layer, head), value in np.ndenumerate(heads):
        effect = float(value) - heads.attrs["corrupted"]
        assert circuit.nodes[f"blocks.{layer}.attn[{head}]"] == pytest.approx(effect, abs=1e-12)
    assert circuit.nodes["blocks.1.mlp"] == float(mlps[1])
    told = pl.patching.path(
        glass, clean, corrupted, senders=("z", {}), receivers="logits", over=("layer", "head"), **about
    )
    best = int(np.abs(told.values - told.attrs["corrupted"]).argmax())
    assert list(pl.circuits.Circuit(nodes=told).top(1).nodes) == [f"blocks.{best // 2}.attn[{best % 2}]"]
    order = sorted(circuit.nodes, key=lambda node: -abs(circuit.nodes[node]))
    assert set(circuit.top(3).nodes) == set(order[:3])
    least = abs(circuit.nodes[order[2]])
    assert set(circuit.above(least).nodes) == set(order[:2]), "farther, not as far"
    assert len(circuit.top(99)) == len(circuit)
    assert pl.circuits.Circuit(nodes=[(1, 0), "blocks.0.mlp"]).nodes == {"blocks.0.mlp": 1.0, "blocks.1.attn[0]": 1.0}


def test_nodes_from_an_attribution() -> None:
    """Heads and MLPs as they are, embeddings together, biases left out; the mean over texts."""
    glass = model()
    parts = pl.attribution.direct(glass.run_with_ckpts(two()[0])[1], 3, by="head").isel(pos=-1)
    found = pl.circuits.Circuit(nodes=parts).nodes
    assert list(found) == list(Graph(glass.schema).nodes)
    mean = parts.mean("batch")
    assert found["blocks.1.attn[0]"] == pytest.approx(float(mean.sel(component="blocks.1.attn[0]")))
    embedded = mean.sel(component=["ckpt_embed", "ckpt_pos_embed"]).sum()
    assert found["embeddings"] == pytest.approx(float(embedded))
    assert len(pl.circuits.Circuit(nodes=parts.isel(batch=0)).top(2)) == 2


def test_nodes_as_edges_and_edges_as_nodes() -> None:
    graph = Graph(model().schema)
    inside = pl.circuits.Circuit(nodes=["blocks.0.attn[1]", "blocks.1.mlp"]).as_edges(graph)
    assert ("blocks.0.attn[1]", "blocks.1.mlp") in inside
    assert {("embeddings", "blocks.0.attn.q[1]"), ("blocks.1.mlp", "logits"), ("embeddings", "logits")} <= inside
    assert not any("blocks.0.mlp" in edge or "blocks.1.attn[0]" in edge for edge in inside)
    assert pl.circuits.Circuit(edges=[("blocks.0.attn[1]", "blocks.1.attn.k[0]")]).as_nodes(graph) == {
        "blocks.0.attn[1]", "blocks.1.attn[0]",
    }  # fmt: skip


def test_a_report_says_what_was_chosen() -> None:
    said = repr(report(model(), pl.circuits.Circuit(nodes=NODES), subsets=5, random=4))
    assert "4 of 6 nodes, 2 texts: resample ablation of heads, mlps by nodes at every position, noise" in said
    for word in ("faithfulness", "by text", "completeness", "greedily", "minimality", "random", repr(METRIC)):
        assert word in said


MUTANTS: dict[str, tuple[Any, str, Any, Any]] = {
    "keeps what it should replace": (
        Ablations, "_replaced", lambda plain: lambda self, kept: [p for p in self.universe if p in kept],
        lambda: test_edges_by_whole_runs("resample"),
    ),
    "values of another text": (
        Ablations, "_instead",
        lambda plain: lambda self, pair: {n: v.roll(1, 0) for n, v in plain(self, pair).items()},
        lambda: test_nodes_by_whole_runs("resample", None),
    ),
    "the stream of another receiver": (
        EdgeTap, "_projected", lambda plain: lambda self, block, letter, value: plain(self, block, "q", value),
        lambda: test_edges_by_whole_runs("resample"),
    ),
    "a sender is forgotten": (
        EdgeTap, "_heard",
        lambda plain: lambda self, receivers, stream: (self.weights[..., 1].zero_(), plain(self, receivers, stream))[1],
        lambda: test_edges_by_whole_runs("zero"),
    ),
    "everywhere instead of at some positions": (
        Ablations, "_mask", lambda plain: lambda self, columns: None,
        lambda: test_positions_and_directions("edges", "noise", -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, make, check = MUTANTS[what]
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    with pytest.raises(AssertionError):
        check()
