"""Names of other libraries: each denotes the same value, or is refused with the reason."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pellucid.names.aliases import canonical

IDS = support.some_ids(2, 9)

pair = functools.cache(support.pair)

MODULES = ["ln_1", "ln_2", "attn", "attn.resid_dropout", "mlp", "mlp.c_fc", "mlp.act", "mlp.dropout", ""]


@pytest.mark.parametrize("path", [f"transformer.h.{i}.{part}".rstrip(".") for i in (0, 2) for part in MODULES]
                         + ["transformer.wte", "transformer.wpe", "transformer.drop", "transformer.ln_f"])  # fmt: skip
def test_module_paths_denote_the_output_of_that_module(path: str) -> None:
    """What a native hook of theirs sees at the path equals what our checkpoint holds, to the bit."""
    ours, hf = pair()
    seen: list[torch.Tensor] = []
    handle = hf.get_submodule(path).register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        hf(IDS)
    handle.remove()
    _, ckpts = ours.run_with_ckpts(IDS)
    assert torch.equal(ckpts[path], seen[0].expand_as(ckpts[path]))
    assert ckpts[path.removeprefix("transformer.")] is ckpts[path]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hook_embed", "ckpt_embed"),
        ("hook_pos_embed", "ckpt_pos_embed"),
        ("ln_final.hook_normalized", "ln_final.ckpt_normalized"),
        ("blocks.0.hook_resid_pre", "blocks.0.resid_pre"),
        ("blocks.0.hook_resid_mid", "blocks.0.resid_mid"),
        ("blocks.0.hook_resid_post", "blocks.0.resid_post"),
        ("blocks.0.hook_attn_out", "blocks.0.attn.ckpt_attn_out"),
        ("blocks.0.hook_mlp_out", "blocks.0.mlp.ckpt_mlp_out"),
        ("blocks.11.attn.hook_pattern", "blocks.11.attn.ckpt_pattern"),
        ("blocks.11.attn.hook_attn_scores", "blocks.11.attn.ckpt_scores"),
        ("blocks.2.mlp.hook_pre", "blocks.2.mlp.ckpt_pre"),
        ("blocks.2.ln1.hook_normalized", "blocks.2.ln1.ckpt_normalized"),
        ("blocks.*.attn.hook_z", "blocks.*.attn.ckpt_z"),
        (("pattern", 0), "blocks.0.attn.ckpt_pattern"),
        (("q", 3), "blocks.3.attn.ckpt_q"),
        (("scores", 3), "blocks.3.attn.ckpt_scores"),
        (("resid_post", 1), "blocks.1.resid_post"),
        (("mlp_out", 1), "blocks.1.mlp.ckpt_mlp_out"),
        (("pre", 1, "mlp"), "blocks.1.mlp.ckpt_pre"),
        (("normalized", 0, "ln1"), "blocks.0.ln1.ckpt_normalized"),
        (("normalized",), "ln_final.ckpt_normalized"),
        (("embed",), "ckpt_embed"),
        ("embed", "ckpt_embed"),
        ("hook_z", "blocks.*.attn.ckpt_z"),
        ("attn.hook_z", "blocks.*.attn.ckpt_z"),
        (("pattern",), "blocks.*.attn.ckpt_pattern"),
        (("pattern", "attn", 0), "blocks.0.attn.ckpt_pattern"),
        (("pattern", 0, "a"), "blocks.0.attn.ckpt_pattern"),
        (("resid_pre", 0, "block"), "blocks.0.resid_pre"),
        (("attn", 3), "blocks.3.attn.ckpt_pattern"),
        (("attn_logits", 3), "blocks.3.attn.ckpt_scores"),
        (("mlp_post", 3), "blocks.3.mlp.ckpt_post"),
        ("pattern3", "blocks.3.attn.ckpt_pattern"),
        ("resid_post11", "blocks.11.resid_post"),
        ("normalized0ln1", "blocks.0.ln1.ckpt_normalized"),
        ("blocks.0.ckpt_resid_pre", "blocks.0.resid_pre"),
        ("blocks.0.hook_z", "blocks.0.attn.ckpt_z"),
        ("blocks.0.pattern", "blocks.0.attn.ckpt_pattern"),
        ("h.0.mlp", "blocks.0.mlp.ckpt_mlp_out"),
        ("transformer.h.*.attn", "blocks.*.attn.ckpt_attn_out"),
    ],
)
def test_aliases(alias: str | tuple[str | int, ...], name: str) -> None:
    assert canonical(alias, support.schema(3)) == name


@pytest.mark.parametrize("name", support.schema(2).names)
def test_our_own_names_stay_as_they_are(name: str) -> None:
    assert canonical(name, support.schema(3)) == name


def test_every_checkpoint_has_a_short_form(glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(IDS)
    for name in support.schema(3).names:
        parts = name.split(".")
        kind = parts[-1].removeprefix("ckpt_")
        block = int(parts[1]) if parts[0] == "blocks" else None
        where = next((p for p in parts if p.startswith("ln")), None)
        assert ckpts[kind, block, where] is ckpts[name]


@pytest.mark.parametrize(
    "alias",
    [
        "blocks.0.ln1.hook_scale", "ln_final.hook_scale", "blocks.1.attn.hook_result", "blocks.1.hook_q_input",
        "blocks.0.hook_mlp_in", "blocks.0.hook_attn_in", "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj",
        "transformer.h.0.mlp.c_proj", "transformer.h.0.attn.attn_dropout", "h.0.attn.c_proj", "lm_head", "unembed",
        "blocks.*.ln2.hook_scale", ("scale", 0, "ln1"), ("scale",),
    ],
)  # fmt: skip
def test_names_of_other_values_are_refused_with_the_reason(alias: str | tuple[str | int, ...]) -> None:
    with pytest.raises(pl.UnknownNameError) as caught:
        canonical(alias, support.schema(3))
    assert caught.value.code == "alias-refused"
    assert "not the same value" in str(caught.value)


def test_refused_names_would_be_wrong() -> None:
    """c_proj is before dropout, attn_out after it: while training they differ, so that no alias is allowed."""
    hf = support.reference().train()
    seen: dict[str, torch.Tensor] = {}
    for part in ("c_proj", "resid_dropout"):
        hf.transformer.h[0].attn.get_submodule(part).register_forward_hook(
            lambda m, a, out, part=part: seen.__setitem__(part, out)
        )
    torch.manual_seed(0)
    hf(IDS)
    assert not torch.equal(seen["c_proj"], seen["resid_dropout"])


def test_aliases_work_wherever_a_name_does(glass: pl.CkptedTransformer) -> None:
    _, plain = glass.run_with_ckpts(IDS)
    _, by_alias = glass.run_with_ckpts(IDS, names=["blocks.*.attn.hook_z", ("pattern", 1), "transformer.h.2"])
    assert set(by_alias) == {
        *(f"blocks.{i}.attn.ckpt_z" for i in range(3)),
        "blocks.1.attn.ckpt_pattern",
        "blocks.2.resid_post",
    }
    logits, stopped = glass.run_with_ckpts(IDS, names="hook_embed", stop_at="blocks.0.hook_resid_post")
    assert logits is None
    assert list(stopped) == ["ckpt_embed"]
    assert torch.equal(
        glass.run_with_ckpts(IDS, names=("pattern", 0))[1]["pattern", 0], plain["blocks.0.attn.ckpt_pattern"]
    )
    assert pl.estimate(glass, IDS, "blocks.*.hook_resid_post").by_name.keys() == {
        f"blocks.{i}.resid_post" for i in range(3)
    }


def test_negative_blocks_count_from_the_end_everywhere(glass: pl.CkptedTransformer) -> None:
    _, every = glass.run_with_ckpts(IDS)
    last = every["blocks.2.resid_post"]
    for name in ("blocks.-1.resid_post", ("resid_post", -1), "blocks.-1.hook_resid_post", "transformer.h.-1", "h.-1"):
        assert every[name] is last
        assert list(glass.run_with_ckpts(IDS, names=name)[1]) == ["blocks.2.resid_post"]
        assert list(glass.run_with_ckpts(IDS, names="resid_post", stop_at=name)[1])[-1] == "blocks.2.resid_post"
        edit = pl.Edit.zero(name)
        assert not glass.run_with_ckpts(IDS, edits=[edit])[1][name].any()
    assert list(glass.run_with_ckpts(IDS, names="blocks.-3.attn.*")[1]) == [
        name for name in support.schema(3).names if name.startswith("blocks.0.attn.")
    ]
    norms = pl.measure.norms(every, ("resid_post", -1))
    assert norms.equals(pl.measure.norms(every, "blocks.2.resid_post"))
    assert glass.generate(IDS, max_new_tokens=2, names="blocks.-1.resid_post").ckpts is not None


@pytest.mark.parametrize("name", [("pattern", 3), ("pattern", -4), "blocks.3.attn.ckpt_pattern", "h.3", "pattern3"])
def test_a_block_that_does_not_exist_is_told_which_there_are(glass: pl.CkptedTransformer, name: Any) -> None:
    _, every = glass.run_with_ckpts(IDS)
    for look in (lambda: every[name], lambda: glass.run_with_ckpts(IDS, names=name), lambda: every.get(name)):
        with pytest.raises(pl.UnknownNameError) as caught:
            look()
        assert "this model has blocks 0 to 2" in caught.value.message


def test_a_model_without_blocks_says_so() -> None:
    with pytest.raises(pl.UnknownNameError) as caught:
        support.glass(n_layer=0).run_with_ckpts(IDS, names=("pattern", 0))
    assert "this model has no blocks" in caught.value.message


@pytest.mark.parametrize("path", ["attn", "mlp"])
def test_the_path_of_a_module_is_its_output_whoever_wrote_the_path(path: str, glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(IDS)
    for block in ("0", "-1"):
        assert torch.equal(ckpts[f"blocks.{block}.{path}"], ckpts[f"h.{block}.{path}"])
    assert torch.equal(ckpts["attn", 0], ckpts["blocks.0.attn.ckpt_pattern"])  # HookedTransformer's word for a pattern


def test_an_argument_of_others_is_told_what_to_pass(glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(IDS)
    with pytest.raises(pl.UnknownArgumentError) as caught:
        ckpts.get("pattern", layer=0)  # pyright: ignore[reportCallIssue]
    assert "block=" in caught.value.remedy
    assert torch.equal(ckpts.get("pattern", block=0), ckpts["pattern", 0])
