"""State dicts: nothing is run, so that names have to carry what a run would show."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from rights import RIGHTS

import pellucid as pl
import support
from pellucid.weights.layouts import from_ours

Dict = dict[str, torch.Tensor]
SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
FLAT = ("monolith", "permuted", "interleaved", "stacked")
"""Programs some of whose names, such as "par.w" and "par.b", say nothing of a norm's gain and shift."""


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


def exchanged(tensors: Dict, a: str, b: str) -> Dict:
    return {**tensors, a: tensors[b], b: tensors[a]}


def alike(tensors: Dict) -> list[tuple[str, str]]:
    """Every two names whose tensors could stand for one another and do not."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    return [
        (a, b)
        for i, a in enumerate(names)
        for b in names[:i]
        if tensors[a].shape == tensors[b].shape and not torch.equal(tensors[a], tensors[b])
    ]


@pytest.mark.parametrize("layout", ["hf", "nanogpt", "llm.c", "hooked-transformer", "pellucid"])
def test_names_of_known_layouts_are_believed(layout: str, small: pl.CkptedTransformer) -> None:
    own = small.state_dict()
    theirs = from_ours(own, small.config, layout)
    assert pl.compare(own, theirs).verdict == pl.compare(theirs, own).verdict == "identical"
    pairs = alike(theirs)
    for a, b in random.Random(layout).sample(pairs, 24):
        report = pl.compare(theirs, exchanged(theirs, a, b))
        assert (report.verdict, report.first_divergence.what) == ("different", "parameter"), (a, b)
    for name, tensor in theirs.items():
        if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
            assert pl.compare(own, {**theirs, name: tensor.T.contiguous()}).verdict == "different", name


@pytest.mark.parametrize("name", sorted(set(RIGHTS) - {"split", *FLAT}))
def test_names_of_unknown_layouts_have_to_agree_with_the_values(name: str, small: pl.CkptedTransformer) -> None:
    theirs: Dict = RIGHTS[name](small).state_dict()
    assert pl.compare(small.state_dict(), theirs).verdict == "identical"
    pairs = alike(theirs)
    for a, b in random.Random(name).sample(pairs, min(len(pairs), 12)):
        report = pl.compare(small.state_dict(), exchanged(theirs, a, b))
        assert not report, (a, b)


@pytest.mark.parametrize("name", FLAT)
def test_names_that_say_nothing_are_said_to(name: str, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small.state_dict(), RIGHTS[name](small).state_dict())
    assert report
    assert "only numbers, weights, biases and heads in their names could be checked" in str(report)


def flipped(tensors: Dict, parts: str) -> Dict:
    """Heads of block 1 in reverse, in these of q, k, v and O."""
    made = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias"):
        fused = made[name].unflatten(-1, (3, 3, 8))
        for i in ("qkv".index(part) for part in parts if part != "O"):
            fused[..., i, :, :] = fused[..., i, :, :].flip(-2)
    if "O" in parts:
        out = made["transformer.h.1.attn.c_proj.weight"]
        out.copy_(out.clone().view(3, 8, 24).flip(0).reshape(24, 24))
    return made


@pytest.mark.parametrize(
    ("parts", "verdict"), [("qkvO", "equivalent"), ("qkv", "different"), ("O", "different"), ("qk", "different")]
)
def test_heads_in_another_order(parts: str, verdict: str, small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    for a, b in ((hf, flipped(hf, parts)), (flipped(hf, parts), small.state_dict())):
        assert pl.compare(a, b).verdict == verdict


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("course", "attn.qkv_proj"),
        ("course", "attn.output_proj"),
        ("per head", "heads.0.query"),
        ("torch", "self_attn.in_proj_"),
    ],
)
def test_heads_of_an_unknown_layout_stand_in_one_order(name: str, part: str, small: pl.CkptedTransformer) -> None:
    theirs = {key: tensor.clone() for key, tensor in RIGHTS[name](small).state_dict().items()}
    for key in [key for key in theirs if part in key and ".0." in key]:
        if "heads.0" in key and key.startswith("stack.0."):
            theirs = exchanged(theirs, key, key.replace("heads.0", "heads.2"))
        elif "output" in part:
            theirs[key] = theirs[key].unflatten(-1, (3, 8)).flip(-2).flatten(-2) if "weight" in key else theirs[key]
        elif "heads" not in key:
            theirs[key] = theirs[key].unflatten(0, (3, 3, 8)).flip(1).flatten(0, 2)
    report = pl.compare(small.state_dict(), theirs)
    assert report.verdict == "inconclusive"
    assert any("stand in more than one order" in note for note in report.notes), report


def test_sizes_that_differ(small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    shorter = {name: tensor for name, tensor in hf.items() if ".h.1." not in name}
    narrow = {**hf, "transformer.wpe.weight": hf["transformer.wpe.weight"][:8]}
    for other, where, words in ((shorter, "blocks.1.ln1.w", "only the first has it"),
                                (narrow, "pos_embed.W_pos", "shapes")):  # fmt: skip
        report = pl.compare(hf, other)
        assert (report.verdict, report.first_divergence.where) == ("different", where)
        assert words in report.first_divergence.detail


def test_dtypes_meet(small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    half = {name: tensor.bfloat16() for name, tensor in hf.items()}
    assert pl.compare(hf, half).verdict == "equivalent"
    assert pl.compare(hf, {**half, **{n: t.bfloat16() for n, t in flipped(hf, "qkvO").items()}}).verdict == "equivalent"


def untied(model: pl.CkptedTransformer, head: torch.Tensor) -> pl.CkptedTransformer:
    config = model.config.replace(tie_word_embeddings=False)
    return pl.CkptedTransformer(config, {**model.state_dict(), "unembed.W_U": head}).eval()


def test_ends_that_are_untied_and_equal(small: pl.CkptedTransformer) -> None:
    W_U = small.embed.W_E.detach().clone().T
    equal, moved = untied(small, W_U), untied(small, W_U + 1e-3)
    ids = torch.arange(8)[None]
    for a, b, verdict in ((small, equal, "identical"), (small, moved, "different"), (equal, moved, "different")):
        hf = pl.to_hf(b)
        pairs: list[tuple[Any, Any]] = [(a, b), (b, a), (a, hf), (a.state_dict(), b.state_dict()),
                                        (b.state_dict(), a.state_dict()), (b.state_dict(), a)]  # fmt: skip
        for one, other in pairs:
            assert pl.compare(one, other, ids).verdict == verdict
    assert pl.compare(equal, RIGHTS["course"](small), ids)


def test_a_module_that_is_no_gpt2_beside_a_state_dict(small: pl.CkptedTransformer) -> None:
    class Reversed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = RIGHTS["course"](small)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids).flip(-1)

    report = pl.compare(small.state_dict(), Reversed())
    assert report.verdict == "inconclusive"
    assert "not recognised as a GPT-2 by what it computes" in str(report)
    changed = {**small.state_dict(), "blocks.0.ln1.b": 1.1 * small.state_dict()["blocks.0.ln1.b"]}
    assert pl.compare(Reversed(), changed).verdict == "different"
    with pytest.raises(pl.InputError) as caught:
        pl.compare({"a": torch.ones(2)}, Reversed())
    assert caught.value.code == "compare-unknown-both"


def test_what_layouts_carry_beside_weights(small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    hooked = from_ours(small.state_dict(), small.config, "hooked-transformer")
    hf["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    hooked |= {"blocks.0.attn.IGNORE": torch.tensor(-torch.inf), "unembed.b_U": torch.zeros(small.config.vocab_size)}
    ids = torch.arange(8)[None]
    for theirs in (hf, hooked):
        assert pl.compare(small, theirs, ids).verdict == "identical"
        assert pl.compare(theirs, small.state_dict()).verdict == "identical"


def test_sensitivity_beside_a_state_dict(small: pl.CkptedTransformer) -> None:
    found = pl.compare(small, from_ours(small.state_dict(), small.config), torch.arange(8)[None]).sensitivity
    assert len(found) == 20
    assert all(size is not None and size <= 1e-7 for size in found.values())
