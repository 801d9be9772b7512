"""State dicts: nothing is run, so that names have to carry what a run would show."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from rights import RIGHTS

import pellucid as pl
import support
from pellucid.gpt2.layouts import LAYOUTS
from pellucid.weights.layouts import from_ours

Dict = dict[str, torch.Tensor]
SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
FLAT = ("monolith", "permuted", "interleaved", "stacked")
"""Programs some of whose names, such as "par.w" and "par.b", say nothing of a norm's gain and shift."""


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


@pytest.fixture(scope="module")
def one() -> pl.CkptedTransformer:
    """Of one block, which is enough where blocks do not matter."""
    return support.glass(**{**SMALL, "n_layer": 1})


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


@pytest.fixture(scope="module")
def unbiased() -> pl.CkptedTransformer:
    model = support.glass(**SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith("b"):
                parameter.zero_()
    return model


@pytest.mark.parametrize("layout", [one.name for one in LAYOUTS])
def test_names_of_known_layouts_are_believed(
    layout: str, small: pl.CkptedTransformer, unbiased: pl.CkptedTransformer
) -> None:
    model = unbiased if layout == "nanogpt-without-bias" else small
    own = model.state_dict()
    theirs = from_ours(own, model.config, layout)
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in theirs.items()}
    assert pl.compare(wrapped, theirs).verdict == "identical"
    assert pl.compare(own, theirs).verdict == pl.compare(theirs, own).verdict == "identical"
    pairs = alike(theirs)
    for a, b in random.Random(layout).sample(pairs, min(len(pairs), 5)):
        report = pl.compare(theirs, exchanged(theirs, a, b))
        assert (report.verdict, report.first_divergence.what) == ("different", "parameter"), (a, b)
    for name, tensor in theirs.items():
        if tensor.dim() >= 2 and tensor.shape[-2] == tensor.shape[-1]:
            assert pl.compare(own, {**theirs, name: tensor.mT.contiguous()}).verdict == "different", name


@pytest.mark.parametrize(
    ("name", "why"),
    [("split", "unexplained by the reference: layers.0.attention.root"), ("fused", "disagree: steps.3")],
)
def test_what_a_state_dict_leaves_open_is_said(name: str, why: str, small: pl.CkptedTransformer) -> None:
    """A scalar that may do anything; matrices that lie both ways. The programs themselves are found equivalent."""
    report = pl.compare(small.state_dict(), RIGHTS[name](small).state_dict())
    assert report.verdict == "inconclusive"
    assert why in str(report)


@pytest.mark.parametrize("name", sorted(set(RIGHTS) - {"split", "fused", *FLAT}))
def test_names_of_unknown_layouts_have_to_agree_with_the_values(name: str, small: pl.CkptedTransformer) -> None:
    theirs: Dict = RIGHTS[name](small).state_dict()
    assert pl.compare(small.state_dict(), theirs).verdict == "identical"
    pairs = alike(theirs)
    for a, b in random.Random(name).sample(pairs, min(len(pairs), 4)):
        report = pl.compare(small.state_dict(), exchanged(theirs, a, b))
        assert not report, (a, b)


@pytest.mark.parametrize("name", FLAT)
def test_names_that_say_nothing_are_said_to(name: str, small: pl.CkptedTransformer) -> None:
    theirs: Dict = RIGHTS[name](small).state_dict()
    assert pl.compare(small.state_dict(), theirs)
    if name != "stacked":  # which has no numbers
        of_blocks = [name for name in theirs if any(map(str.isdigit, name)) and theirs[name].dim() == 1]
        for a, b in random.Random(name).sample([(a, b) for a in of_blocks for b in of_blocks if a < b], 6):
            if theirs[a].shape == theirs[b].shape:
                assert not pl.compare(small.state_dict(), exchanged(theirs, a, b)), (a, b)


def everywhere(tensors: Dict, a: str, b: str) -> Dict:
    """Exchanged in every block."""
    for name in [name for name in tensors if a in name]:
        tensors = exchanged(tensors, name, name.replace(a, b))
    return tensors


@pytest.mark.parametrize("n_layer", [1, 2])
@pytest.mark.parametrize(
    ("a", "b"), [("attn.output_proj.bias", "linear2.bias"), ("ln1.weight", "ln2.weight"), ("ln1.bias", "ln2.bias")]
)
def test_a_mistake_in_every_block_is_seen(a: str, b: str, n_layer: int) -> None:
    model = support.glass(**{**SMALL, "n_layer": n_layer})
    assert not pl.compare(model.state_dict(), everywhere(RIGHTS["course"](model).state_dict(), a, b))


def of_no_layout(tensors: Dict) -> Dict:
    """The course's tensors under a name that no layout knows."""
    return {name.replace("token_embedding", "words"): tensor for name, tensor in tensors.items()}


def test_a_square_matrix_that_lies_otherwise_than_its_siblings(small: pl.CkptedTransformer) -> None:
    theirs = of_no_layout(RIGHTS["course"](small).state_dict())
    turned = {n: t.T.contiguous() if "output_proj.weight" in n else t for n, t in theirs.items()}
    assert pl.compare(small.state_dict(), turned).verdict == "inconclusive"


def renamed(tensors: Dict, kind: str) -> Dict:
    """The course's names in other right arrangements."""
    made: Dict = {}
    for name, tensor in tensors.items():
        block, _, rest = name.removeprefix("blocks.").partition(".") if name.startswith("blocks.") else ("", "", name)
        if kind == "prefix with a number":
            name = f"gpt2.{name}"
        elif kind == "from one on" and block:
            name = f"layers.{int(block) + 1}.{rest}"
        elif kind == "pipeline":
            name = f"{int(block) + 1}.{rest}" if block else f"{3 if name.startswith('ln') else 0}.{name}"
        elif kind == "counters" and block:
            for one, parts in (("norm", ("ln1.", "ln2.")), ("dense", ("attn.qkv_proj.", "attn.output_proj.", "linear1.",
                                                                       "linear2."))):  # fmt: skip
                for place, part in enumerate(parts):
                    if rest.startswith(part):
                        number = len(parts) * int(block) + place
                        name = f"{one}{f'_{number}' if number else ''}.{rest.removeprefix(part)}"
        made[name] = tensor
    return made


@pytest.mark.parametrize("zeros", [(), ("blocks.0.ln1.b", "ln_final.b"), ("blocks.1.ln1.b", "ln_final.b")])
@pytest.mark.parametrize("kind", ["prefix with a number", "from one on", "pipeline", "counters"])
def test_right_arrangements_pass_and_an_exchange_does_not(kind: str, zeros: tuple[str, ...]) -> None:
    model = support.glass(**SMALL)
    with torch.no_grad():
        for name in zeros:
            model.parameter(name).zero_()
    theirs = renamed(RIGHTS["course"](model).state_dict(), kind)
    report = pl.compare(model.state_dict(), theirs)
    assert report.verdict == "identical", report
    norms = [name for name, tensor in theirs.items() if torch.equal(tensor, model.parameter("blocks.0.ln1.b"))]
    others = [name for name, tensor in theirs.items() if torch.equal(tensor, model.parameter("blocks.1.ln1.b"))]
    assert not pl.compare(model.state_dict(), exchanged(theirs, norms[0], others[0]))


def test_a_parameter_has_one_place(small: pl.CkptedTransformer) -> None:
    theirs = RIGHTS["course"](small).state_dict()
    more = {**theirs, "blocks.0.gate": theirs["blocks.0.ln1.weight"].clone()}
    assert pl.compare(small.state_dict(), more).verdict == "inconclusive"
    assert pl.compare(small, more, torch.arange(5)[None]).verdict == "inconclusive"
    module = RIGHTS["course"](small)
    module.gate = torch.nn.Parameter(theirs["blocks.0.ln1.weight"].clone())
    report = pl.compare(small, module, torch.arange(5)[None])
    assert report.verdict == "equivalent", "it is run, and nothing reads it"
    assert "gate" in " ".join(report.notes), report
    ones = support.glass(**SMALL)
    with torch.no_grad():
        ones.parameter("ln_final.w").fill_(1)
    theirs = RIGHTS["course"](ones).state_dict()
    wrong = {**theirs, "ln.weight": theirs["blocks.0.ln1.weight"].clone()}
    assert not pl.compare(ones.state_dict(), wrong)


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
    report = pl.compare(small.state_dict(), of_no_layout(theirs))
    assert report.verdict == "inconclusive"
    assert any("stand in more than one order" in note for note in report.notes), report


def test_equal_heads_and_another_order(small: pl.CkptedTransformer) -> None:
    model = support.glass(**SMALL)
    with torch.no_grad():
        for block in model.blocks:
            for name in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V", "W_O"):
                getattr(block.attn, name)[:2] = 0.0
    module = RIGHTS["course"](model)
    with torch.no_grad():
        for block in module.blocks:
            for fused in (block.attn.qkv_proj.weight, block.attn.qkv_proj.bias):
                fused.copy_(fused.clone().unflatten(0, (3, 3, 8)).flip(1).flatten(0, 2))
            out = block.attn.output_proj.weight
            out.copy_(out.clone().unflatten(-1, (3, 8)).flip(-2).flatten(-2))
    assert pl.compare(model, module, torch.arange(5)[None]).verdict == "equivalent"
    assert pl.compare(model.state_dict(), module.state_dict()).verdict == "equivalent"


def test_a_number_of_heads_that_is_assumed_is_named(small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    assert "with 3 heads, which the layout does not say" in str(pl.compare(hf, flipped(hf, "qkvO")))
    assert "which the layout does not say" not in str(pl.compare(hf, hf))


def test_the_number_of_heads_is_searched_only_where_heads_differ(
    monkeypatch: pytest.MonkeyPatch, small: pl.CkptedTransformer
) -> None:
    from pellucid.prove import dicts

    counted: list[int] = []
    right = dicts.align
    monkeypatch.setattr(dicts, "align", lambda *given: counted.append(1) or right(*given))
    course = of_no_layout(RIGHTS["course"](small).state_dict())
    theirs = {name: 1.001 * tensor for name, tensor in course.items()}
    assert pl.compare(from_ours(small.state_dict(), small.config), theirs).verdict == "different"
    assert len(counted) == 1


def test_sizes_that_differ(small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    shorter = {name: tensor for name, tensor in hf.items() if ".h.1." not in name}
    narrow = {**hf, "transformer.wpe.weight": hf["transformer.wpe.weight"][:8]}
    for other, where, words in ((shorter, "blocks.1.ln1.w", "only the first has it"),
                                (narrow, "pos_embed.W_pos", "shapes")):  # fmt: skip
        for report in (pl.compare(hf, other), pl.compare(small, other, torch.arange(5)[None])):
            assert (report.verdict, report.first_divergence.where) == ("different", where)
            assert words in report.first_divergence.detail


def rounded(tensors: Dict) -> Dict:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def mixed(tensors: Dict) -> Dict:
    """Matrices in bfloat16, vectors in float32."""
    return {name: tensor.bfloat16() if tensor.dim() > 1 else tensor.clone() for name, tensor in tensors.items()}


def test_dtypes_meet(small: pl.CkptedTransformer) -> None:
    hf = from_ours(small.state_dict(), small.config)
    for other in (rounded(hf), rounded(flipped(hf, "qkvO"))):
        assert pl.compare(hf, other).verdict == pl.compare(other, hf).verdict == "equivalent"
    assert pl.compare(mixed(hf), mixed(hf)).verdict == "identical"


@pytest.mark.parametrize("layout", ["hf", "course"])
def test_each_pair_meets_in_the_coarser_of_its_own_dtypes(layout: str, small: pl.CkptedTransformer) -> None:
    theirs = from_ours(small.state_dict(), small.config) if layout == "hf" else RIGHTS["course"](small).state_dict()
    name = "transformer.ln_f.weight" if layout == "hf" else "ln.weight"
    moved = mixed(theirs)
    moved[name][0] = torch.nextafter(moved[name][0], torch.tensor(torch.inf))
    assert pl.compare(mixed(small.state_dict()), mixed(theirs))
    assert pl.compare(mixed(small.state_dict()), moved).verdict == "different"


def test_a_coarse_buffer_makes_no_parameter_coarse(small: pl.CkptedTransformer) -> None:
    hf, ids = pl.to_hf(small), torch.arange(5)[None]
    hf.register_buffer("scratch", torch.ones(3, dtype=torch.bfloat16))
    assert pl.compare(small, hf, ids).verdict == "identical"
    with torch.no_grad():
        weight = hf.transformer.wpe.weight
        weight[15, 0] = torch.nextafter(weight[15, 0], torch.tensor(torch.inf))
    report = pl.compare(small, hf, ids)
    assert (report.verdict, report.first_divergence.where) == ("different", "pos_embed.W_pos")


def test_models_of_several_dtypes_are_compared_in_them(small: pl.CkptedTransformer) -> None:
    a, b = (RIGHTS["course"](small) for _ in range(2))
    for module in (a, b):
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.bfloat16()
    ours = support.glass(**SMALL)
    for parameter in ours.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16()
    ids = torch.arange(5)[None]
    report = pl.compare(ours, a, ids)
    assert all(row.bit_equal for row in report.parameters)
    assert report.verdict == "inconclusive"  # neither runs as it is
    with torch.no_grad():
        b.ln.weight[0] = torch.nextafter(b.ln.weight[0], torch.tensor(torch.inf))
    assert pl.compare(ours, b, ids).verdict == "different"


def untied(model: pl.CkptedTransformer, head: torch.Tensor) -> pl.CkptedTransformer:
    config = model.config.replace(tie_word_embeddings=False)
    return pl.CkptedTransformer(config, {**model.state_dict(), "unembed.W_U": head}).eval()


def test_ends_that_are_untied_and_equal(one: pl.CkptedTransformer) -> None:
    W_U = one.embed.W_E.detach().clone().T
    equal, moved = untied(one, W_U), untied(one, W_U + 1e-3)
    ids = torch.arange(8)[None]
    for a, b, verdict in ((one, equal, "identical"), (one, moved, "different"), (equal, moved, "different")):
        hf = pl.to_hf(b)
        held, theirs = a.state_dict(), b.state_dict()
        pairs: list[tuple[Any, Any]] = [(a, b), (b, a), (a, hf), (held, theirs), (theirs, held), (theirs, a), (b, held)]
        for first, second in pairs:
            assert pl.compare(first, second, ids).verdict == verdict
    assert pl.compare(equal, RIGHTS["course"](one), ids)


def test_a_module_that_is_no_gpt2_beside_a_state_dict(one: pl.CkptedTransformer) -> None:
    class Reversed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = RIGHTS["course"](one)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids).flip(-1)

        def get_extra_state(self) -> Any:  # no tensor, in a state dict all the same
            return {"version": 3}

    report = pl.compare(one.state_dict(), Reversed())
    assert report.verdict == "inconclusive"
    assert "not recognised as a GPT-2 by what it computes" in str(report)
    changed = {**one.state_dict(), "blocks.0.ln1.b": 1.1 * one.state_dict()["blocks.0.ln1.b"]}
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
    causal = {**hf, "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16).tril()}
    open_mask = {**hf, "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}
    for side in (small, small.state_dict()):
        assert pl.compare(side, causal, ids).verdict == "identical"
        assert pl.compare(side, open_mask, ids).verdict == "inconclusive"


def test_sensitivity_beside_a_state_dict(one: pl.CkptedTransformer) -> None:
    found = pl.compare(one, from_ours(one.state_dict(), one.config), torch.arange(8)[None]).sensitivity
    assert len(found) == 20
    assert all(size is not None and size <= 1e-7 for size in found.values())
