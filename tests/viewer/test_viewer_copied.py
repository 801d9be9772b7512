"""What a figure gives as Python, or as a command line, makes its very numbers, on a run of the bundled model."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from watched_page import Watched, content, ran, screens
from written_traces import page_of

import pellucid as pl
import samples
from pellucid.viewer import trace

Open = Callable[..., Watched]
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def page(bundled: pl.CkptedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copied") / "page.html"
    made = trace(bundled, TEXT)
    lines = f"import pellucid as pl\n\nmodel = pl.load()\nlogits, ckpts = model.run_with_ckpts({TEXT!r})\n"
    made.header["calls"]["values"] = lines
    path.write_text(page_of(made.to_bytes()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def space(bundled: pl.CkptedTransformer) -> dict[str, Any]:
    """What the lines that make the run bind; they are run once, and each figure's own lines after them."""
    logits, ckpts = bundled.run_with_ckpts(TEXT)
    return {"pl": pl, "model": bundled, "logits": logits, "ckpts": ckpts}


def copied(watched: Watched, title: str) -> dict[str, Any]:
    """A figure's JSON: its rows by the names of their columns, and its lines of Python."""
    found = json.loads(content(watched, title, "JSON"))
    found["by"] = {name: [row[i] for row in found["rows"]] for i, name in enumerate(found["columns"])}
    return found


def value_of(code: str, space: dict[str, Any]) -> Any:
    """The value of the last line of a figure's own lines, which follow those that make the run."""
    first, own = code.split("run_with_ckpts", 1)
    assert first.startswith("import pellucid as pl\n\nmodel = pl.load()\n")
    *lines, last = own.split("\n", 1)[1].strip().splitlines()
    here = dict(space)
    exec("\n".join(lines), here)
    return eval(last, here)


def test_lines_are_right_without_a_tokenizer(opened: Open, tmp_path: Path) -> None:
    """A token is its id then, in a family's own program."""
    model, ids = samples.shared("llama"), samples.ragged_ids(9)
    assert model.tokenizer is None
    made = trace(model, ids)
    made.header["calls"]["values"] = "import pellucid as pl\n\nmodel = pl.load()\n_ = model.run_with_ckpts(0)\n"
    (tmp_path / "page.html").write_text(page_of(made.to_bytes()), encoding="utf-8")
    watched = opened(tmp_path / "page.html", state="#river")
    space = {"pl": pl, "model": model, "ckpts": model.run_with_ckpts(ids)[1]}
    said = [copied(watched, title) for title in watched.page.locator(".figure h2").all_inner_texts()]
    watched.show("attention")
    assert "previous" in value_of(copied(watched, "All heads")["python"], space)
    total = float(made["attribution.logit"].data[0])
    assert [float(flat(value_of(one["python"], space)).sum()) for one in (said[0], said[-1])] == pytest.approx(
        [total] * 2, rel=1e-5
    )


def flat(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().double().numpy().ravel()
    return np.asarray(value, dtype="f8").ravel()


def test_python_makes_the_numbers_of_attention(opened: Open, page: Path, space: dict[str, Any]) -> None:
    watched = opened(page, state="#attention?layer=3&head=0&q=13")
    head = copied(watched, "Layer 3, head 0")
    pattern = flat(value_of(head["python"], space)).reshape(14, 14)
    assert head["by"]["share"] == pytest.approx(pattern[np.tril_indices(14)].tolist(), abs=0.004)
    steps = copied(watched, "How ‘␣to’ divides its attention")
    shares = flat(value_of(steps["python"], space))
    assert steps["by"]["share"] == pytest.approx(shares.tolist(), rel=1e-4, abs=1e-7)
    heads = copied(watched, "All heads")
    measured = value_of(heads["python"], space)
    assert isinstance(measured, xr.Dataset)
    for name in ("previous", "first", "duplicate"):
        assert heads["by"][name] == pytest.approx(flat(measured[name]).tolist(), rel=1e-5, abs=1e-7, nan_ok=True)


def test_python_makes_the_numbers_of_the_overview(opened: Open, page: Path, space: dict[str, Any]) -> None:
    watched = opened(page, state="#overview?q=7&layer=2")
    top = copied(watched, "What comes next")
    found = value_of(top["python"], space)
    assert top["by"]["id"] == found.indices.tolist()
    assert top["by"]["probability"] == pytest.approx(flat(found.values).tolist(), rel=1e-4)
    ladder = copied(watched, "The ladder of blocks")
    norms = [row[4] for row in ladder["rows"] if row[:2] == ["resid_post", 2]]
    assert norms == pytest.approx(flat(value_of(ladder["python"], space)).tolist(), rel=1e-5)
    diagram = copied(watched, "From ids to logits")
    points = value_of(diagram["python"], space).points
    assert diagram["by"]["checkpoint"] == [*(point.name for point in points), "logits"]


def test_python_makes_the_numbers_of_the_lens(opened: Open, page: Path, space: dict[str, Any]) -> None:
    watched = opened(page, state="#lens?row=2&q=13")
    grid = copied(watched, "What each layer would say")
    first = value_of(grid["python"], space).text.values[..., 0].ravel().tolist()
    assert grid["by"]["first_choice"][14:] == first
    rise = copied(watched, "How ‘␣Mary’ comes up")
    ranks = value_of(rise["python"], space)
    assert rise["by"]["rank"][1:] == (flat(ranks[:, 0, 13]) + 1).tolist()
    adds = copied(watched, "What attention and the MLPs add to ‘␣Mary’")
    assert sum(adds["by"]["adds"]) == pytest.approx(float(value_of(adds["python"], space).sum()), rel=1e-5)


def test_python_makes_the_numbers_of_the_river(opened: Open, page: Path, space: dict[str, Any]) -> None:
    watched = opened(page, state="#river")
    river = copied(watched, "The river of ‘␣Mary’")
    total = float(value_of(river["python"], space))
    assert sum(row[-1] for row in river["rows"]) == pytest.approx(total, rel=1e-12)
    parts = copied(watched, "The largest parts")
    found = value_of(parts["python"], space)
    expected = dict(zip(map(str, found.component.values), flat(found).tolist(), strict=True))
    assert dict(zip(parts["by"]["component"], parts["by"]["adds"], strict=True)) == pytest.approx(expected, rel=1e-12)
    heads = copied(watched, "Which head, from which token")
    by_head: dict[str, float] = {}
    for layer, head, _, _, value in heads["rows"]:
        name = f"blocks.{layer}.attn[{head}]"
        by_head[name] = by_head.get(name, 0.0) + value
    assert by_head == pytest.approx({name: expected[name] for name in by_head}, abs=1e-5)


def test_python_makes_the_numbers_of_the_atlas(opened: Open, page: Path, space: dict[str, Any]) -> None:
    for name, tolerance in {"blocks.1.mlp.ckpt_post": 1e-3, "blocks.2.attn.ckpt_pattern": 0.004}.items():
        watched = opened(page, state=f"#atlas?tile={name}")
        atlas = copied(watched, name)
        value = value_of(atlas["python"], space)
        expected = [float(value[tuple(row[:-1])]) for row in atlas["rows"]]
        assert atlas["by"]["value"] == pytest.approx(expected, rel=1e-3, abs=tolerance)


def test_python_makes_the_numbers_of_neurons(opened: Open, page: Path, space: dict[str, Any]) -> None:
    watched = opened(page, state="#neurons?layer=3&neuron=390&q=7")
    along = copied(watched, "Neuron 3.390 along the text")
    before, after = map(flat, value_of(along["python"], space))
    assert along["by"]["mlp.ckpt_pre"] == pytest.approx(before.tolist(), rel=1e-3)
    assert along["by"]["mlp.ckpt_post"] == pytest.approx(after.tolist(), rel=1e-3, abs=1e-6)
    largest = copied(watched, "Its largest tokens")
    values, places = value_of(largest["python"], space)
    assert largest["by"]["pos"] == places.tolist()
    assert largest["by"]["value"] == pytest.approx(flat(values).tolist(), rel=1e-3, abs=1e-6)
    through = copied(watched, "Before and after the activation")
    assert through["by"]["mlp.ckpt_post"] == pytest.approx(
        flat(value_of(through["python"], space)[1]).tolist(), rel=1e-3
    )
    strong = copied(watched, "The strongest neurons at ‘␣store’")
    assert strong["by"]["value"][:20] == pytest.approx(flat(value_of(strong["python"], space)).tolist(), rel=1e-3)
    watched.page.get_by_role("combobox", name="Strong by").select_option("effect")
    for which, count in (("all", 4096), ("layer", 1024)):
        watched.page.get_by_role("combobox", name="of", exact=True).select_option(which)
        adds = copied(watched, "The neurons that add most to ‘␣Mary’")
        assert len(adds["rows"]) == min(count, 1000)
        parts = value_of(adds["python"], space)
        assert adds["by"]["effect"][:20] == pytest.approx(flat(parts).tolist(), rel=2e-3)
        found = list(zip(parts.layer.values.tolist(), parts.index.values.tolist(), strict=True))
        assert [(row[0], row[1]) for row in adds["rows"][:20]] == found


def test_python_makes_the_numbers_of_distributions(opened: Open, page: Path, space: dict[str, Any]) -> None:
    watched = opened(page, state="#distributions?norm=blocks.3.ln2&norms_of=attn_out")
    ridges = copied(watched, "Before and after each norm")
    assert ridges["by"]["count"] == np.concatenate(value_of(ridges["python"], space)).tolist()
    one = copied(watched, "blocks.3.ln2 in numbers")
    assert one["by"]["count"] == np.concatenate(value_of(one["python"], space)).tolist()
    lengths = copied(watched, "How long the vectors are")
    assert lengths["by"]["norm"] == pytest.approx(flat(value_of(lengths["python"], space)).tolist(), rel=1e-5)
    outliers = copied(watched, "Outlier dimensions")
    assert len(outliers["rows"]) > 5
    found = np.concatenate(value_of(outliers["python"], space))
    assert sorted(outliers["by"]["mean_abs"]) == pytest.approx(sorted(found.tolist()), rel=1e-9)
    for lags in (1, 3):
        watched.page.get_by_role("combobox", name="Tokens before").select_option(str(lags))
        fitted = copied(watched, "Does a token’s length follow from those before?")
        params, intervals = value_of(fitted["python"], space)
        terms = [f"lag{i + 1}" for i in range(lags)]
        assert fitted["by"]["coefficient"] == pytest.approx(flat(params[terms]).tolist(), rel=1e-3)
        for end, column in (("lower", "low"), ("upper", "high")):
            ends = intervals[[(term, end) for term in terms]]
            assert fitted["by"][column] == pytest.approx(flat(ends).tolist(), rel=1e-3, abs=1e-4)


def test_python_makes_the_numbers_of_embeddings(opened: Open, page: Path, space: dict[str, Any]) -> None:
    for name in ("ckpt_embed", "blocks.2.resid_post"):
        watched = opened(page, state=f"#embeddings?place={name}")
        cloud = copied(watched, f"Principal components of {name}")
        found = flat(value_of(cloud["python"], space)).reshape(14, 3)
        for i in range(3):
            assert cloud["by"][f"pc{i + 1}"] == pytest.approx(found[:, i].tolist(), rel=1e-5, abs=1e-5)
    journey = copied(watched, "The same tokens, layer by layer")
    shares = np.array([row[1:] for row in journey["rows"]])
    assert shares.ravel() == pytest.approx(flat(value_of(journey["python"], space)), rel=1e-9)


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.long)], ids=["of each verb", "each"])
def test_every_figure_has_a_command_line_that_makes_its_numbers(
    each: bool,
    opened: Open,
    page: Path,
    space: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = opened(page)
    commands: dict[str, dict[str, list[Any]]] = {}
    for screen in sorted({*screens(watched)} - {"change", "models"}):  # these need the server
        watched.show(screen)
        for title in watched.page.locator(".figure h2").all_inner_texts():
            found = copied(watched, title)
            commands.setdefault(found["shell"], found["by"])
    assert {shlex.split(command)[1] for command in commands} == set(MADE)
    chosen = commands if each else {shlex.split(command)[1]: command for command in reversed(commands)}.values()
    monkeypatch.chdir(tmp_path)
    for command in chosen:
        words, by = shlex.split(command), commands[command]
        code, said = ran(words, capsys)
        assert code == 0, command
        assert MADE[words[1]](words, said, by, space["ckpts"]), command


def saved_alike(words: list[str], said: Any, by: dict[str, list[Any]], ckpts: pl.ActivationCkpts) -> bool:
    found = {name: value for name, value in load_file(words[-1]).items() if name in ckpts}
    at = [int(pos) for option, pos in pairwise(words) if option == "--pos"] or slice(None)
    return bool(found) and all(torch.equal(value, ckpts[name][:, at]) for name, value in found.items())


def lengths_alike(words: list[str], said: Any, by: dict[str, list[Any]], ckpts: pl.ActivationCkpts) -> bool:
    if "--csv" not in words:
        return len(said["layers"]) == len(set(by["layer"]))
    with Path(words[-1]).open(encoding="utf-8") as lines:
        return by["norm"] == pytest.approx([float(row["norm"]) for row in csv.DictReader(lines)], rel=1e-5)


def parts_alike(words: list[str], said: Any, by: dict[str, list[Any]], ckpts: pl.ActivationCkpts) -> bool:
    made = {part["component"]: part["value"] for part in said["parts"]}
    if "component" in by:
        return dict(zip(by["component"], by["adds"], strict=True)) == pytest.approx(made, rel=1e-9)
    *_, last = by.values()  # parts that are added up: the lens's, and the river's after the last layer
    return sum(last) == pytest.approx(sum(made.values()), rel=1e-6)


def scores_alike(words: list[str], said: Any, by: dict[str, list[Any]], ckpts: pl.ActivationCkpts) -> bool:
    shown = {name: by[name] for name in ("previous", "first", "duplicate")}
    made = {name: [float("nan") if head[name] is None else head[name] for head in said["heads"]] for name in shown}
    return all(flat(shown[name]) == pytest.approx(made[name], rel=1e-5, abs=1e-7, nan_ok=True) for name in shown)


def choices_alike(words: list[str], said: Any, by: dict[str, list[Any]], ckpts: pl.ActivationCkpts) -> bool:
    choice = said["layers"][-1]["top"][0]["token"]
    last = by.get("first_choice") or by.get("token") or [choice]
    return choice in (last[-1], last[0]) and choice == " Mary"


MADE: dict[str, Callable[..., bool]] = {
    "run": saved_alike, "norms": lengths_alike, "attribute": parts_alike, "heads": scores_alike, "lens": choices_alike,
    "view": lambda words, *_: Path(words[-1]).stat().st_size > 100_000,
}  # fmt: skip
"""Whether what a verb made is what the figure shows."""
