"""What a report says beyond its verdict: of which models, how far apart, and what one is of the other."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.prove import comparison, divergences, report
from pellucid.prove.about import RunInputs, distance_of, name_of

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
Model = pl.CkptedTransformer


def moved(model: Model, size: float = 0.02, only: str = "") -> Model:
    """A copy in which every parameter, or one, has moved at random."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.startswith(only):
                parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.fixture(scope="module", name="model")
def _model() -> Model:
    return support.glass(vocab_size=53, n_positions=16, n_embd=24, n_layer=1, n_head=3)


def test_the_distance_is_what_its_words_say(model: Model) -> None:
    other = moved(model)
    found = pl.compare(model, other, IDS).distance
    with torch.no_grad():
        a, b = (F.log_softmax(side(IDS).double(), -1) for side in (model, other))
    assert found.same_top == float((a.argmax(-1) == b.argmax(-1)).double().mean())
    assert found.kl == pytest.approx(float(F.kl_div(b, a, log_target=True, reduction="none").sum(-1).mean()), rel=1e-9)
    assert found.loss_a == pytest.approx(float(model.loss(IDS).detach()), rel=1e-5)
    assert found.loss_b == pytest.approx(float(other.loss(IDS).detach()), rel=1e-5)
    back = pl.compare(other, model, IDS).distance
    assert (back.loss_a, back.loss_b) == (found.loss_b, found.loss_a)
    assert back.kl != found.kl


def test_the_other_way_round_is_the_other_way_round(model: Model) -> None:
    """Where the second side is the reference, A is still A."""
    pytest.importorskip("transformers")
    other = moved(model, 0.3)
    straight, swapped = pl.compare(model, other, IDS), pl.compare(pl.to_hf(model), other, IDS)
    assert (straight.reference, swapped.reference) == ("A", "B")
    for name in ("same_top", "kl", "loss_a", "loss_b"):
        assert getattr(swapped.distance, name) == pytest.approx(getattr(straight.distance, name), rel=1e-5)
    by_size = [sorted(found.distance.parameters.values()) for found in (straight, swapped)]
    assert max(by_size[1]) == pytest.approx(max(by_size[0]), rel=1e-6)


def test_relative_changes_are_frobenius_and_the_largest_comes_first(model: Model) -> None:
    other = moved(model, 0.5, only="blocks.0.mlp")
    found = pl.compare(model, other, IDS)
    for row in found.parameters:
        if " + " not in row.a:
            ours, theirs = (side.parameter(row.a).detach().double() for side in (model, other))
            assert row.relative == pytest.approx(float((ours - theirs).norm() / ours.norm()), rel=1e-9)
    assert list(found.distance.parameters) == [row.a for row in found.moved]
    sizes = list(found.distance.parameters.values())
    assert sizes == sorted(sizes, reverse=True)
    assert all(name.startswith("blocks.0.mlp") for name in found.distance.parameters)
    assert pl.compare(model, copy.deepcopy(model), IDS).distance.parameters == {}


def test_padding_is_no_part_of_the_distance(model: Model) -> None:
    """Shorter rows go on with an id; neither its loss nor its distribution counts."""
    other = moved(model)
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    both, single = pl.compare(model, other, rows).distance, [pl.compare(model, other, [row]).distance for row in rows]
    tokens, targets = (8, 3), (7, 2)
    assert both.kl == pytest.approx(sum(n * d.kl for n, d in zip(tokens, single, strict=True)) / 11, rel=1e-5)
    assert both.loss_a == pytest.approx(sum(n * d.loss_a for n, d in zip(targets, single, strict=True)) / 9, rel=1e-5)


def test_what_cannot_be_measured_is_none(model: Model) -> None:
    assert pl.compare(model, model, torch.tensor([[3]])).distance.loss_a is None
    dicts = pl.compare(model.state_dict(), moved(model, only="ln_final").state_dict())
    assert (dicts.distance.same_top, dicts.distance.kl) == (None, None)
    assert set(dicts.distance.parameters) == {"ln_final.w", "ln_final.b"}
    assert str(dicts.inputs) == "nothing was run"
    impossible = torch.tensor([[[0.0, -math.inf], [1.0, -math.inf]]])
    assert distance_of((impossible, impossible), [[0, 0]], {}).kl == 0.0


def test_a_report_names_what_was_compared(model: Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "one")
    found = pl.compare(tmp_path / "one", model, [[3, 1, 4]])
    assert (found.a, found.b) == (str(tmp_path / "one"), "CkptedTransformer")
    assert found.inputs == RunInputs(((3, 1, 4),))
    assert (found.versions["pellucid"], found.versions["torch"]) == (pl.__version__, torch.__version__)
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(found.about.date)
    assert dt.timedelta(seconds=-1) <= age < dt.timedelta(minutes=5)
    content = json.loads(found.to_json())
    assert (content["a"], content["b"], content["inputs"]["ids"]) == (found.a, found.b, [[3, 1, 4]])
    for text in (repr(found), found.to_markdown(), found.page().render()):
        shown = text.replace("\\", "")
        assert all(
            word in shown for word in (found.a, found.b, "ids 3, 1, 4 (3 tokens)", pl.__version__, found.about.date)
        )


def test_names_from_files_are_no_markup(model: Model) -> None:
    found = pl.compare(model, moved(model), IDS)
    hostile = replace(found, about=replace(found.about, a="a|b*c*`d` <img src=x> \n# e"))
    line = next(line for line in hostile.to_markdown().splitlines() if line.startswith("- A: "))
    assert line == r"- A: a\|b\*c\*\`d\` \<img src=x\> \# e"
    assert name_of(Path("x\x1b[31my")) == "x\\x1b[31my"


def test_without_a_tokenizer_ids_are_drawn_and_said_to_be(model: Model) -> None:
    found, again = pl.compare(model, copy.deepcopy(model)), pl.compare(model, copy.deepcopy(model))
    assert found.inputs.drawn
    assert found.inputs == again.inputs
    assert "drawn from the vocabulary with seed 0, since neither side has a tokenizer" in repr(found)
    assert len(found.inputs.ids[0]) == min(model.config.n_positions, 32)
    with pytest.raises(pl.InputError, match="no tokenizer"):
        pl.compare(model, model, "a text of one's own")
    padded = Model(model.config.replace(pad_token_id=5), model.state_dict()).eval()
    assert 5 not in pl.compare(padded, copy.deepcopy(padded)).inputs.ids[0]


def rounded(model: Model, dtype: torch.dtype) -> Model:
    """A copy in another dtype."""
    return copy.deepcopy(model).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_values_are_recognised_in_a_wider_dtype(dtype: torch.dtype, model: Model) -> None:
    cause = f"B is A rounded to {str(dtype).removeprefix('torch.')}"
    wide = rounded(rounded(model, dtype), torch.float32)
    found = pl.compare(model, wide, IDS)
    assert (found.verdict, found.first_divergence.cause) == ("different", cause)
    assert pl.compare(model.state_dict(), wide.state_dict()).first_divergence.cause == cause


@pytest.mark.parametrize("dtype", support.few_of([torch.float16, torch.bfloat16], torch.bfloat16))
def test_rounding_is_recognised_whatever_the_file_holds(dtype: torch.dtype, model: Model) -> None:
    words = f"rounded to {str(dtype).removeprefix('torch.')}"
    half = rounded(model, dtype)
    found = pl.compare(model, half, IDS)
    assert (found.verdict, f"B is A {words}" in found.notes) == ("equivalent", True)
    assert f"A is B {words}" in pl.compare(half, model, IDS).notes
    assert any("hold the same values" in note for note in pl.compare(half, rounded(half, torch.float32), IDS).notes)


def test_rounding_with_one_weight_changed_is_no_rounding(model: Model) -> None:
    for name, change in (("W_in", 0.01), ("b_out", 1.0)):  # what still resembles its counterpart, and what does not
        half = rounded(rounded(model, torch.float16), torch.float32)
        with torch.no_grad():
            getattr(half.blocks[0].mlp, name)[0] += change
        assert "rounded" not in repr(pl.compare(model, half, IDS))


def test_rows_that_were_added_are_counted(model: Model) -> None:
    config = model.config.replace(vocab_size=model.config.vocab_size + 4)
    state = {**model.state_dict(), "embed.W_E": torch.cat([model.embed.W_E.detach(), torch.randn(4, config.n_embd)])}
    longer = Model(config, {name: state[name] for name in model.state_dict()}).eval()
    rows = f"{model.config.vocab_size} rows are equal to the bit, and"
    found = pl.compare(model, longer, IDS)
    assert f"embed.W_E: the first {rows} B has 4 rows more" in found.notes
    turned = pl.compare(longer, model, IDS)
    assert f"embed.W_E: the first {rows} A has 4 rows more" in turned.notes
    for one in (found, turned):
        assert one.verdict == "different"
        assert "logits: shapes" in repr(one)
        assert "without instruments" not in repr(one)
        assert not any("unexplained" in note or "missing" in note for note in one.notes)
    assert f"{len(found.parameters)} of {len(found.parameters) + 1} parameters" in found.summary
    with torch.no_grad():
        longer.embed.W_E[0, 0] += 1
    assert any(f"{model.config.vocab_size - 1} of the first" in note for note in pl.compare(model, longer, IDS).notes)


def test_rows_of_a_head_are_told_of_the_head(model: Model) -> None:
    """Of both tables each, whichever way round the other program keeps them, and never one of the other."""
    wide, body = model.config.replace(tie_word_embeddings=False), model.state_dict()
    columns = torch.randn(model.config.n_embd, model.config.vocab_size + 4)
    rows = torch.cat([model.embed.W_E.detach(), torch.randn(4, model.config.n_embd)])
    apart = Model(wide).eval()
    apart.load_state_dict({**apart.state_dict(), **body, "unembed.W_U": columns[:, :-4]})
    longer = Model(wide.replace(vocab_size=model.config.vocab_size + 4)).eval()
    longer.load_state_dict({**longer.state_dict(), **body, "embed.W_E": rows, "unembed.W_U": columns})
    words = f"the first {model.config.vocab_size} rows are equal to the bit, and A has 4 rows more"
    for other in (apart, pl.to_hf(apart)):
        assert words in str(pl.compare(longer.state_dict(), other.state_dict()).first_divergence)
        told = [note for note in pl.compare(longer, other, IDS).notes if "unexplained" in note or "rows" in note]
        assert told == [f"embed.W_E: {words}", f"unembed.W_U: {words}"]


def test_a_head_of_its_own_is_one_parameter_more(model: Model) -> None:
    untied = Model(model.config.replace(tie_word_embeddings=False)).eval()
    state = {**model.state_dict(), "unembed.W_U": torch.randn(model.config.n_embd, model.config.vocab_size)}
    untied.load_state_dict({name: state[name] for name in untied.state_dict()})
    found = pl.compare(model, untied, IDS)
    assert f"{len(found.parameters)} of {len(found.parameters) + 1} parameters" in found.summary
    assert any("B has a head of its own" in note for note in found.notes)


def test_steps_between_numbers_are_counted_only_where_they_mean_something(model: Model) -> None:
    near, far = torch.tensor([1.0, 2.0]), torch.tensor([1e-4, 2.0])
    near_b = torch.nextafter(near, torch.tensor(math.inf))
    assert "(1 ulp in float32)" in report.describe_difference(pl.compare(near, near_b))
    across = report.describe_difference(pl.compare(far, torch.tensor([-1e-4, 2.0])))
    assert "ulp" not in across
    assert across == "differs by up to 0.0002, by 0.0001 of its norm"


def _the_other_way_round(logits: Any, rows: Any, parameters: Any, *, swapped: bool = False) -> Any:
    return distance_of(logits and (logits[1], logits[0]), rows, parameters, swapped=swapped)


MUTANTS: dict[str, Any] = {
    "A is taken for B": (
        comparison, "distance_of", _the_other_way_round, test_the_distance_is_what_its_words_say,
    ),
    "what fills rows up counts": (
        comparison.Comparison, "_rows", lambda self: self.ids.tolist(), test_padding_is_no_part_of_the_distance,
    ),
    "rounding is told from one tensor": (
        divergences.Sides, "pairs", lambda self: iter([(torch.ones(1) / 3, (torch.ones(1) / 3).half())]),
        test_rounding_with_one_weight_changed_is_no_rounding,
    ),
    "names are markup": (
        report, "in_markdown", lambda text: text, test_names_from_files_are_no_markup,
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, model: Model) -> None:
    must_be_noticed(MUTANTS[name], model, by=[StopIteration])


def test_other_values_in_a_table_are_no_longer_table() -> None:
    """Both tables differ throughout and have the same width: neither is a part of the other."""
    one = support.glass(vocab_size=53, n_positions=16, n_embd=24, n_layer=1, n_head=3)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.embed.W_E.add_(1.0)
        two.pos_embed.W_pos.add_(1.0)
    found = pl.compare(one, two, support.some_ids(1, 6, 53))
    assert found.verdict == "different"
    assert not any("rows more" in note for note in found.notes), found.notes
