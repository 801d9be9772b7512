"""Parts that an edit takes: what holds none is refused, and a part goes to no other place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pellucid as pl
import support


@pytest.mark.parametrize("part", [{"heads": [2, 3]}, {"pos": -1}])
def test_a_part_is_not_patched_into_another_place(tiny: pl.CkptedTransformer, part: dict[str, object]):
    _, source = tiny.run_with_ckpts(support.ROW, names="blocks.0.attn.ckpt_z", **part)
    with pytest.raises(pl.EditError):
        tiny.run_with_ckpts(support.ROW, edits=pl.Edit.patch("blocks.0.attn.ckpt_z", source))


def test_another_length_is_not_patched(tiny: pl.CkptedTransformer):
    _, source = tiny.run_with_ckpts(support.ROW[:, :1])
    for name in ("blocks.0.attn.ckpt_pattern", "blocks.0.resid_post"):
        with pytest.raises(pl.EditError):
            tiny.run_with_ckpts(support.ROW, edits=pl.Edit.patch(name, source))


def test_a_reference_of_some_heads_is_refused(tiny: pl.CkptedTransformer):
    _, source = tiny.run_with_ckpts(support.ROW, names="blocks.0.attn.ckpt_z", heads=[1, 3])
    with pytest.raises(pl.EditError):
        tiny.run_with_ckpts(support.ROW, edits=pl.Edit.mean_ablate("blocks.0.attn.ckpt_z", source, heads=0))


def test_booleans_are_not_positions(tiny: pl.CkptedTransformer):
    with pytest.raises(pl.InputError):
        tiny.run_with_ckpts(support.ROW, edits=pl.Edit.zero("ckpt_embed", pos=torch.tensor([False, True])))
    _, ckpts = tiny.run_with_ckpts(support.ROW, edits=pl.Edit.zero("ckpt_embed", pos=torch.tensor(2)))
    assert ckpts["ckpt_embed"][0].abs().amax(-1).eq(0).nonzero().flatten().tolist() == [2]


def test_a_generator_of_positions_serves_every_checkpoint(tiny: pl.CkptedTransformer):
    _, ckpts = tiny.run_with_ckpts(support.ROW, names="blocks.*.resid_post", pos=(i for i in [1, 2]))
    assert {value.shape[1] for value in ckpts.values()} == {2}


def test_a_mean_over_pads_alone_is_refused(tiny: pl.CkptedTransformer):
    batch = tiny.tokenize(torch.tensor([[0, 1, 2], [0, 3, 4]]), mask=[[0, 1, 1], [0, 1, 1]])
    _, pads = tiny.run_with_ckpts(batch, names="blocks.0.resid_post", pos=0)
    with pytest.raises(pl.EditError):
        tiny.run_with_ckpts(batch, edits=pl.Edit.mean_ablate("blocks.0.resid_post", pads))


def test_edits_of_nothing_are_refused(tiny: pl.CkptedTransformer):
    for wrong in (
        lambda: pl.Edit.zero([]),
        lambda: pl.Edit.zero(None),
        lambda: pl.Edit.patch("ckpt_embed", None),
        lambda: pl.Edit.apply("ckpt_embed", 3),
    ):
        with pytest.raises(pl.EditError):
            tiny.run_with_ckpts(support.ROW, edits=wrong())


def test_names_from_an_iterator_are_read_once(tiny: pl.CkptedTransformer):
    names = [f"blocks.{i}.resid_post" for i in range(2)]
    out = tiny.generate(support.ROW, max_new_tokens=2, names=iter(names), end_ids=())
    assert out.ckpts is not None
    assert list(out.ckpts) == names
    edit = pl.Edit.zero(iter(names))
    for _ in range(2):
        assert tiny.run_with_ckpts(support.ROW, edits=edit)[1].fired[edit] == 2


@pytest.mark.parametrize("pos", [torch.tensor([False, True]), [1.7], [True], "1"], ids=str)
def test_what_is_no_position_is_none_in_a_generation(tiny: pl.CkptedTransformer, pos: object):
    edit = pl.Edit.zero("ckpt_embed", pos=pos)
    with pytest.raises(pl.InputError, match="expected whole numbers") as caught:
        tiny.generate(support.ROW, max_new_tokens=2, edits=edit)
    assert caught.value.code == "negative-position"


@pytest.mark.parametrize("pos", [torch.tensor(2), np.int64(2), torch.tensor([2]), 2], ids=repr)
def test_a_position_is_one_in_whatever_it_comes(tiny: pl.CkptedTransformer, pos: object):
    out = tiny.generate(
        support.ROW, max_new_tokens=2, names="ckpt_embed", edits=pl.Edit.zero("ckpt_embed", pos=pos), end_ids=()
    )
    assert out.ckpts is not None
    assert (out.ckpts["ckpt_embed"] == 0).all(-1)[0].nonzero().flatten().tolist() == [2]


def test_a_mean_over_many_tokens_in_half_precision():
    config = pl.TransformerConfig(vocab_size=50, n_positions=1024, n_embd=24, n_layer=1, n_head=4)
    model = pl.CkptedTransformer(config).eval().half()
    with torch.no_grad():
        model.embed.W_E.fill_(64.0)
    ids = torch.arange(1024)[None] % 50
    _, ckpts = model.run_with_ckpts(ids, names="ckpt_embed", edits=pl.Edit.mean_ablate("ckpt_embed"))
    assert (ckpts["ckpt_embed"] == 64).all()
