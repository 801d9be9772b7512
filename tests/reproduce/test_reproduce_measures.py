"""What is computed for each published figure is what a direct computation on a small model gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from pellucid.reproduce import measures
from pellucid.reproduce.study import Sentences, Study, eight

LAYERS = HEADS = 12
MARY = "When John and Mary went to the shops, John gave the bag to"
NAMES: dict[str, tuple[tuple[int, int], ...]] = {
    "movers": ((9, 9), (9, 6), (10, 0)), "negative": ((10, 7), (11, 10)),
    "inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)), "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
    "duplicate": ((0, 1), (0, 10), (3, 0)), "previous": ((2, 2), (4, 11)),
    "backup": ((9, 0), (9, 7), (10, 1), (10, 2), (10, 6), (10, 10), (11, 2), (11, 9)),
}  # fmt: skip


def model_of(tokenizer: pl.Tokenizer, **fields: Any) -> pl.CkptedTransformer:
    """A random narrow model with GPT-2's tokenizer, in float64."""
    glass = support.glass(
        dtype=torch.float64, n_head=HEADS, n_positions=128, vocab_size=50257, bos_token_id=50256, eos_token_id=50256,
        **fields,
    )  # fmt: skip
    glass.tokenizer = tokenizer
    return glass


@pytest.fixture(scope="module", name="study")
def _study(gpt2_tokenizer: pl.Tokenizer) -> Study:
    """A model with all of GPT-2 small's heads."""
    return Study(model_of(gpt2_tokenizer, n_layer=LAYERS, n_embd=12, n_inner=640), 2, count=2, each=1, seed=1)


@pytest.fixture(scope="module", name="shallow")
def _shallow(gpt2_tokenizer: pl.Tokenizer) -> Study:
    """A model of two blocks, for what asks for no head."""
    return Study(model_of(gpt2_tokenizer, n_layer=2, n_embd=24), 1, count=1, each=1, seed=2)


def number(value: Any) -> float:
    return float(value[0] if isinstance(value, tuple) else value)


def token(study: Study, text: str) -> int:
    (found,) = study.tokenizer.encode(text)
    return found


def logits_of(study: Study, text: str, *, bos: bool = False, edits: Sequence[pl.Edit] = ()) -> torch.Tensor:
    """[P, V]: of one text alone."""
    ids = torch.tensor([[50256] * bos + study.tokenizer.encode(text)])
    return study.model.run({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, edits=edits)[0].detach()


def difference(study: Study, text: str, answer: tuple[str, str], **more: Any) -> float:
    last = logits_of(study, text, **more)[-1]
    return float(last[token(study, answer[0])] - last[token(study, answer[1])])


def each(study: Study) -> list[tuple[Sentences, int]]:
    return [(group, i) for group in study.groups for i in range(len(group.texts))]


def test_sentences_have_their_names_where_they_say(study: Study) -> None:
    assert len(study.groups) == 4
    orders = set[bool]()
    for group, i in each(study):
        pieces = study.tokenizer.pieces(study.tokenizer.encode(group.texts[i]))
        io, s = group.answers[i]
        assert (pieces[group.io], pieces[group.s1], pieces[group.s2]) == (io, s, s)
        assert (pieces.count(io), pieces.count(s)) == (1, 2)
        orders.add(group.io < group.s1)
        swapped = study.tokenizer.pieces(study.tokenizer.encode(group.swapped[i]))
        assert [a for a, b in zip(pieces, swapped, strict=True) if a != b] == [s]
        assert swapped[group.s2] == io
        others = study.tokenizer.pieces(study.tokenizer.encode(group.others[i]))
        changed = [at for at, (a, b) in enumerate(zip(pieces, others, strict=True)) if a != b]
        assert changed == sorted((group.io, group.s1, group.s2))
        assert len({others[at] for at in changed} | {io, s}) == 5
    assert orders == {True, False}
    assert {len(study.tokenizer.encode(text)) for text in (*eight().texts, *eight().swapped)} == {14}


def test_the_loss(study: Study) -> None:
    ids = [50256, *study.tokenizer.encode("Hello world!")]
    logprobs = logits_of(study, "Hello world!", bos=True).log_softmax(-1)
    expected = -np.mean([float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)])
    assert measures.loss(study) == [pytest.approx(expected, abs=1e-12)]


def test_the_eight_sentences(study: Study) -> None:
    eights = eight()
    assert [text.split()[-6] for text in eights.texts[:4]] == ["shops,", "shops,", "park,", "park,"]
    for found, texts in zip(measures.eight_sentences(study), (eights.texts, eights.swapped), strict=True):
        own = [difference(study, text, answer, bos=True) for text, answer in zip(texts, eights.answers, strict=True)]
        assert found == pytest.approx(np.mean(own), abs=1e-12)
    answers = dict(zip(eights.texts, eights.answers, strict=True))
    assert answers[MARY] == (" Mary", " John")


def test_contributions_are_those_of_folded_weights(study: Study) -> None:
    """As they were published: norms and biases folded, weights and head centred; here without folding anything."""
    folded = pl.fold(study.model).model
    ids = torch.tensor([[50256, *study.tokenizer.encode(MARY)]])
    _, ckpts = folded.run_with_ckpts({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    mary, john = (token(study, f" {name}") for name in ("Mary", "John"))
    by_head = pl.attribution.direct(ckpts, (mary, john), by="head").isel(batch=0, pos=-1)
    wanted = [(9, 9), (9, 6), (10, 7), (11, 1), (11, 10), (10, 0), (10, 10), (8, 10)]
    expected = [float(by_head.sel(component=f"blocks.{layer}.attn[{head}]")) for layer, head in wanted]
    assert measures.contributions_of_heads(study) == pytest.approx(expected, abs=1e-10)
    found = measures.contributions_of_neurons(study)
    for value, name, neuron in zip(found, (mary, john), (611, 621), strict=True):
        parts = pl.attribution.direct(ckpts, name, by="neuron").isel(batch=0, pos=-1)
        assert value == pytest.approx(float(parts.sel(component=f"blocks.11.mlp[{neuron}]")), abs=1e-10)


def test_behaviour(study: Study) -> None:
    differences, probabilities = list[float](), list[float]()
    for group, i in each(study):
        differences.append(difference(study, group.texts[i], group.answers[i]))
        probabilities.append(float(logits_of(study, group.texts[i])[-1].softmax(-1)[token(study, group.answers[i][0])]))
    expected = [np.mean(differences), np.mean([one > 0 for one in differences]), np.mean(probabilities)]
    assert measures.behaviour(study) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[1] < 1


def test_attention(study: Study) -> None:
    seen: dict[str, list[float]] = {"movers": [], "inhibition": []}
    for group, i in each(study):
        _, ckpts = study.model.run_with_ckpts(group.texts[i])
        for kind, column in (("movers", group.io), ("inhibition", group.s2)):
            for layer, head in NAMES[kind]:
                seen[kind].append(float(ckpts[f"blocks.{layer}.attn.ckpt_pattern"][0, head, -1, column]))
    assert measures.attention(study) == pytest.approx([np.mean(one) for one in seen.values()], abs=1e-12)


def test_copying(study: Study) -> None:
    """By the definition: what W_V and W_O make of a name behind the first block, read by the last norm and the head."""
    model, copied = study.model, np.zeros((2, LAYERS, HEADS))
    for group, i in each(study):
        stream = model.run_with_ckpts(group.texts[i])[1]["blocks.0.resid_post"][:, group.io : group.io + 1]
        answer = token(study, group.answers[i][0])
        for layer, block in enumerate(model.blocks):
            read, attn = block.ln1(stream), block.attn
            written = torch.cat([(read @ attn.W_V[head] + attn.b_V[head]) @ attn.W_O[head] for head in range(HEADS)])
            for sign in (0, 1):
                logits = model.unembed(model.ln_final((1 - 2 * sign) * written))[:, 0]
                copied[sign, layer] += ((logits > logits[:, [answer]]).sum(-1) < 5).numpy()
    copied /= len(each(study))
    expected = [
        np.mean([copied[0][head] for head in NAMES["movers"]]), copied[0].mean(),
        np.mean([copied[1][head] for head in NAMES["negative"]]), copied[1].mean(),
    ]  # fmt: skip
    assert measures.copying(study) == pytest.approx(expected, abs=1e-12)


def effects(study: Study, ends: Sequence[tuple[str, int, int, int | None]]) -> np.ndarray:
    """[layer, head]: what a head's path to these queries, keys or values does, by whole runs; to the logits if none."""
    few, model = study.few, study.model
    _, clean = model.run_with_ckpts(few.texts)
    _, other = model.run_with_ckpts(few.others)
    metric, batch = pl.metrics.logit_difference(few.answers), model.tokenize(few.texts)
    plain, found = metric(model.run(batch).detach(), batch), np.full((LAYERS, HEADS), np.nan)
    z = [f"blocks.{layer}.attn.ckpt_z" for layer in range(LAYERS)]
    last = max((layer for _, layer, _, _ in ends), default=LAYERS)
    for layer, head in product(range(last), range(HEADS)):
        edits = list[pl.Edit]()
        for at in range(layer, LAYERS):
            held = clean[z[at]].clone()
            held[:, :, head] = (other if at == layer else clean)[z[at]][:, :, head]
            edits.append(pl.Edit.replace(z[at], held))
        names = [f"blocks.{to}.attn.ckpt_{letter}" for letter, to, _, _ in ends]
        logits, ckpts = model.run_with_ckpts(batch, edits=edits, names=names)
        if ends:
            second = list[pl.Edit]()
            for letter, to, reader, pos in ends:
                name = f"blocks.{to}.attn.ckpt_{letter}"
                if to > layer:
                    got = ckpts[name][:, :, reader : reader + 1]
                    got = got if pos is None else got[:, pos:]
                    second.append(pl.Edit.replace(name, got, heads=reader, pos=pos))
            logits = model.run(batch, edits=second)
        found[layer, head] = float((metric(logits.detach(), batch) - plain).mean())
    return found


def listed(effect: np.ndarray, heads: Sequence[tuple[int, int]], top: int) -> tuple[int, list[str]]:
    order = sorted(product(range(LAYERS), range(HEADS)), key=lambda head: np.nan_to_num(effect[head], nan=np.inf))[:top]
    return sum(head in heads for head in order), [f"{layer}.{head}" for layer, head in order]


def said(value: Any) -> tuple[int, list[str]]:
    count, words = value
    return count, words.split(", ")


@pytest.mark.long
def test_paths_to_the_logits(study: Study) -> None:
    one = Study(study.model, templates=1, count=1, each=1, seed=3)
    effect, (low, high) = effects(one, ()), measures.paths_to_logits(one)
    assert said(low) == listed(effect, NAMES["movers"], 3)
    assert said(high) == listed(-effect, NAMES["negative"], 2)


@pytest.mark.long
def test_paths_to_queries_and_values(study: Study) -> None:
    one = Study(study.model, templates=1, count=1, each=1, seed=3)
    queries = effects(one, [("q", layer, head, -1) for layer, head in NAMES["movers"]])
    assert said(measures.paths_to_movers(one)[0]) == listed(queries, NAMES["inhibition"], 4)
    values = effects(one, [("v", layer, head, None) for layer, head in NAMES["inhibition"]])
    assert said(measures.paths_to_inhibition(one)[0]) == listed(
        values, (*NAMES["induction"], *NAMES["duplicate"]), 4
    )  # fmt: skip


def test_detectors(study: Study) -> None:
    *induction, previous, duplicate = measures.detected(study)
    expected = pl.measure.induction(study.model, texts=8, seed=1)
    assert induction == [float(expected[head]) for head in ((5, 5), (6, 9), (7, 10), (5, 1), (7, 2))]
    total: dict[str, np.ndarray] = {"previous": np.zeros((LAYERS, HEADS)), "duplicate": np.zeros((LAYERS, HEADS))}
    for group, i in each(study):
        _, ckpts = study.model.run_with_ckpts(group.texts[i], names="**.ckpt_pattern")
        pattern, ids = ckpts.stack("attn.ckpt_pattern")[:, 0].numpy(), study.tokenizer.encode(group.texts[i])
        for q in range(1, len(ids)):
            total["previous"] += pattern[:, :, q, q - 1] / len(ids)
            for k in range(q):
                if ids[k] == ids[q]:
                    total["duplicate"] += pattern[:, :, q, k]
    assert said(duplicate) == listed(-total["duplicate"], NAMES["duplicate"], 14)
    assert said(previous)[0] == len({*said(previous)[1]} & {"2.2", "4.11"})
    lengths = {len(study.tokenizer.encode(group.texts[0])) for group in study.groups}
    assert len(lengths) == 2, "so a mean over texts is no mean over tokens"


def test_knock_outs(study: Study) -> None:
    kinds = {"end": ("movers", "negative", "backup", "inhibition"), "s2": ("induction", "duplicate")}
    place = {head: where for where, names in kinds.items() for name in names for head in NAMES[name]}
    place |= dict.fromkeys(NAMES["previous"], "after")
    assert len(place) == 26
    whole, without, left = (list[float]() for _ in range(3))
    for group, i in each(study):
        _, others = study.model.run_with_ckpts(group.others)
        columns = range(len(study.tokenizer.encode(group.texts[i])))
        kept = {"end": columns[-1], "s2": group.s2, "after": group.s1 + 1}

        def out(layer: int, head: int, pos: list[int], others: Any = others) -> pl.Edit:
            name = f"blocks.{layer}.attn.ckpt_z"
            return pl.Edit.replace(name, others[name].mean(0)[None, pos, head : head + 1], heads=head, pos=pos)

        whole.append(difference(study, group.texts[i], group.answers[i]))
        edits = [out(*head, list(columns)) for head in NAMES["movers"]]
        without.append(difference(study, group.texts[i], group.answers[i], edits=edits))
        edits = [
            out(layer, head, [c for c in columns if c != kept.get(place.get((layer, head), ""))])
            for layer, head in product(range(LAYERS), range(HEADS))
        ]
        left.append(difference(study, group.texts[i], group.answers[i], edits=edits))
    model = np.mean(whole)
    expected = [(model - np.mean(without)) / model, abs((model - np.mean(left)) / model)]
    assert measures.knocked_out(study) == pytest.approx(expected, rel=1e-9)


@pytest.mark.long
def test_correlations_of_estimates(gpt2_tokenizer: pl.Tokenizer) -> None:
    study = Study(model_of(gpt2_tokenizer, n_layer=1, n_embd=12), 1, count=1, each=1, seed=2)
    eights, expected = eight(), list[float]()
    given: dict[str, Any] = {"over": ("layer", "pos"), "metric": pl.metrics.logit_difference(eights.answers)}
    rows = [[[50256, *study.tokenizer.encode(text)] for text in side] for side in (eights.texts, eights.swapped)]
    texts = [{"input_ids": torch.tensor(one), "attention_mask": torch.ones(8, 15, dtype=torch.long)} for one in rows]
    for name in ("resid_pre", "attn.ckpt_attn_out", "mlp.ckpt_mlp_out"):
        true = pl.patching.sweep(study.model, *texts, name, **given)
        for rules in ("plain", "relp"):
            estimate = pl.attribution.gradient(study.model, *texts, name, rules=rules, **given)
            a, b = (values.values.ravel() - float(values.mean()) for values in (true, estimate))
            expected.append(float(a @ b / math.sqrt((a @ a) * (b @ b))))
    assert measures.estimates(study) == pytest.approx(expected, abs=1e-9)


def later_less_others(study: Study, ids: list[int], logits: torch.Tensor) -> float:
    year = int(study.tokenizer.decode(ids[5]))
    probabilities = logits[-1].softmax(-1)
    every = {number: float(probabilities[token(study, f"{number:02d}")]) for number in range(100)}
    return sum(p if number > year else -p for number, p in every.items())


def test_years(study: Study) -> None:
    clean, corrupted, _ = measures._years(study)
    assert len(clean) == 4
    for row, other in zip(clean, corrupted, strict=True):
        words, of_other = (study.tokenizer.decode(ids) for ids in (row, other))
        begin, end = words.split(" from ")[1].split(" to ")
        assert begin[:2] == end
        assert of_other == words.replace(f" {begin} ", f" {end}01 ")
    expected = [later_less_others(study, ids, study.model.run([ids])[0].detach()) for ids in clean]
    assert measures.greater_than(study) == [pytest.approx(np.mean(expected), abs=1e-12)]


def test_two_hundred_edges_of_years(shallow: Study) -> None:
    few = shallow
    clean, corrupted, metric = measures._years(few)
    expected = list[float]()
    for direction, steps in (("denoise", 5), ("noise", 1)):
        way: Any = direction
        scores = pl.attribution.edges(few.model, clean, corrupted, metric=metric, steps=steps, direction=way)
        share = 200 / int(scores.notnull().sum())
        curve = pl.circuits.curve(few.model, scores, clean, corrupted, metric=metric, value="resample", shares=[share])
        assert curve["count"].values.tolist() == [200]
        plain = [float(metric(few.model.run(side).detach(), None).mean()) for side in (clean, corrupted)]
        expected.append(plain[1] + float(curve[0]) * (plain[0] - plain[1]))
    assert measures.edges_of_greater_than(few) == pytest.approx(expected, abs=1e-9)


MUTANTS: dict[str, tuple[str, Any, Callable[[Study], None]]] = {
    "the beginning of text is missing": (
        "behind_bos", lambda self, texts: self.model.tokenize(list(texts)), test_the_eight_sentences,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, check = MUTANTS[what]
    monkeypatch.setattr(Study, name, wrong)
    with pytest.raises(AssertionError):
        check(study)
