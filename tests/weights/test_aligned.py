"""Where the numbers lie: torch's last bits for one row depend on it, so what is claimed of a file is claimed of any."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.prove import copies
from pellucid.weights import own_file

ONE = torch.tensor([[7]])
LONGER = support.some_ids(2, 5)


def moved(folder: Path, offset: int) -> Path:
    """Pad the header of a folder's weights until the numbers begin at `offset` modulo 64."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip(b" ")
    header += b" " * ((offset - 8 - len(header)) % 64)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    return folder


def numbers(model: Any, ids: Tensor = ONE) -> Tensor:
    with torch.no_grad():
        given = model(ids)
    return given if isinstance(given, Tensor) else given.logits


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SIZES = [{}, {"n_embd": 12, "vocab_size": 61}, {"n_embd": 128, "tie_word_embeddings": False},
         {"n_embd": 20, "n_inner": 12}, {"n_layer": 0}]  # fmt: skip


@pytest.fixture(params=support.few_of(SIZES, SIZES[1], SIZES[4]), ids=str)
def glass(request: pytest.FixtureRequest) -> pl.CkptedTransformer:
    return support.glass(**request.param)


def test_what_is_saved_and_loaded_is_the_same_for_one_token(glass: pl.CkptedTransformer, tmp_path: Path) -> None:
    glass.save_pretrained(tmp_path / "ours")
    pl.save_hf(pl.to_hf(glass), tmp_path / "theirs")
    again = pl.load(tmp_path / "ours")
    for model in (
        again,
        copy.deepcopy(again),
        pl.to_hf(again),
        GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval(),
    ):
        assert torch.equal(numbers(model), numbers(glass))
    hf = GPT2LMHeadModel.from_pretrained(tmp_path / "theirs").eval()
    assert torch.equal(numbers(pl.from_hf(hf)), numbers(hf))
    written, read = (model.generate(ONE, max_new_tokens=6) for model in (glass, again))
    assert torch.equal(written.ids, read.ids)
    assert torch.equal(written.logprobs, read.logprobs)


@pytest.mark.parametrize("offset", support.few_of([4, 8, 40], 8))
def test_what_is_mapped_from_elsewhere_is_what_transformers_maps(offset: int, tmp_path: Path) -> None:
    glass = support.glass(n_embd=128)
    glass.save_pretrained(tmp_path)
    mapped = pl.load(moved(tmp_path, offset))
    assert mapped.embed.W_E.data_ptr() % 64 == offset
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(numbers(mapped), numbers(theirs))
    assert torch.equal(numbers(mapped, LONGER), numbers(theirs, LONGER))
    copied = [copy.deepcopy(mapped), pl.from_hf(theirs), pl.to_hf(mapped), pl.from_hf(pl.to_hf(mapped))]
    mapped.save_pretrained(tmp_path / "again")
    for model in (*copied, pl.load(tmp_path / "again")):
        assert torch.equal(numbers(model), numbers(glass)), "copies and files of ours are one another's equals"
        assert torch.equal(numbers(model, LONGER), numbers(mapped, LONGER)), "and for more rows than one the file's"


@pytest.mark.parametrize(("offset", "ids"), support.few_of([(4, ONE), (8, ONE), (40, LONGER)], 4))
def test_compare_does_not_see_where_numbers_lie(offset: int, ids: Tensor, tmp_path: Path) -> None:
    glass = support.glass(n_embd=128, n_layer=1)
    glass.save_pretrained(tmp_path)
    mapped = pl.load(moved(tmp_path, offset))
    for other in (glass, pl.to_hf(mapped), GPT2LMHeadModel.from_pretrained(tmp_path).eval()):
        assert pl.compare(mapped, other, inputs=ids).verdict == "identical"
        assert pl.compare(other, mapped, inputs=ids).verdict == "identical"


def test_a_copy_that_lies_well_keeps_its_ties_and_shares_what_it_may(tmp_path: Path) -> None:
    support.glass(n_embd=128).save_pretrained(tmp_path)
    hf = GPT2LMHeadModel.from_pretrained(moved(tmp_path, 8))
    hf.lm_head.weight = torch.nn.Parameter(hf.transformer.wte.weight.detach())  # another object, the same memory
    made = copies.working_copy(hf)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in made.parameters())
    assert made.lm_head.weight.data_ptr() == made.transformer.wte.weight.data_ptr()
    again = copies.working_copy(made)
    assert [p.data_ptr() for p in again.parameters()] == [p.data_ptr() for p in made.parameters()]


def _ends_anywhere(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text


MUTANTS = {
    "headers end anywhere": (
        own_file, "_header_bytes", _ends_anywhere,
        lambda folder: test_what_is_saved_and_loaded_is_the_same_for_one_token(support.glass(n_embd=128), folder),
    ),
    "copies lie anywhere": (
        copies, "ALIGNMENT", 1, lambda folder: test_compare_does_not_see_where_numbers_lie(8, ONE, folder),
    ),
}  # fmt: skip


def places_matter() -> bool:
    """Whether this machine's products of one row have other last bits where a matrix begins elsewhere."""
    room, row = torch.empty(128 * 512 + 32), torch.randn(1, 128)
    well = -room.data_ptr() // 4 % 16
    for width, offset in itertools.product((128, 211, 384, 512), (1, 2, 10)):
        matrix = torch.randn(128, width)
        moved_there = room[well + offset :][: matrix.numel()].view(128, width).copy_(matrix)
        if not torch.equal(row @ matrix, row @ moved_there):
            return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, tmp_path: Path) -> None:
    try:
        must_be_noticed(MUTANTS[name], tmp_path)
    except pytest.fail.Exception:
        if places_matter():
            raise
        pytest.skip("this machine's products are the same wherever a matrix lies")
