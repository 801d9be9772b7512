"""A run that begins at a block with a given residual stream, the counterpart of one that stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pellucid as pl
import support

RAGGED = support.ragged_ids(3, 6, 4)
NAMES = support.schema(3).names


WATCHED = ("embed", "pos_embed", "blocks.0", "blocks.1", "blocks.2")


@pytest.fixture
def stream(glass: pl.CkptedTransformer) -> tuple[torch.Tensor, pl.ActivationCkpts]:
    return glass.run_with_ckpts(RAGGED)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("block", [0, 1, 2, -1])
@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_what_follows_is_that_of_the_whole_run(block: int, numerics: str) -> None:
    glass = support.glass(numerics=numerics)
    logits, ckpts = glass.run_with_ckpts(RAGGED)
    name = f"blocks.{block % 3}.resid_pre"
    start = (f"blocks.{block}.resid_pre", ckpts[name])
    assert torch.equal(glass.run(RAGGED, start_at=start), logits)
    again, later = glass.run_with_ckpts(RAGGED, start_at=start)
    assert torch.equal(again, logits)
    assert list(later) == list(NAMES[NAMES.index(name) :])
    assert all(torch.equal(later[n], ckpts[n]) for n in later)


def test_nothing_before_it_runs(glass: pl.CkptedTransformer, stream: Any) -> None:
    ran: list[str] = []
    handles = [module.register_forward_hook(lambda m, a, o, name=name: ran.append(name))
               for name, module in glass.named_modules() if name in WATCHED]  # fmt: skip
    glass.run(RAGGED, start_at=("blocks.2.resid_pre", stream[1]["blocks.2.resid_pre"]))
    for handle in handles:
        handle.remove()
    assert ran == ["blocks.2"]


def test_another_stream_gives_what_an_edit_gives(glass: pl.CkptedTransformer, stream: Any) -> None:
    _, ckpts = stream
    value = ckpts["blocks.1.resid_pre"] * 0.5
    edited, _ = glass.run_with_ckpts(RAGGED, edits=pl.Edit.scale("blocks.1.resid_pre", 0.5))
    assert torch.equal(glass.run(RAGGED, start_at=(("resid_pre", 1), value)), edited)
    both = pl.Edit.zero("blocks.2.attn.ckpt_z", heads=0)
    edited, _ = glass.run_with_ckpts(RAGGED, edits=[pl.Edit.scale("blocks.1.resid_pre", 0.5), both])
    started, fired = glass.run_with_ckpts(RAGGED, start_at=("blocks.1.hook_resid_pre", value), edits=both)
    assert torch.equal(started, edited)
    assert fired.fired[both] == 1
    assert torch.equal(glass.run(RAGGED, start_at=("blocks.1.resid_pre", value), edits=[both]), edited)
    assert torch.equal(
        glass.run(RAGGED, start_at=("blocks.1.resid_pre", value), edits=[both], last_only=True)[:, 0],
        glass(RAGGED, last_only=True, start_at=("blocks.1.resid_pre", value), tap=_tap(both, glass))[:, 0],
    )


def _tap(edit: pl.Edit, glass: pl.CkptedTransformer) -> Any:
    from pellucid.run.taps import EditTap

    return EditTap(edit, glass.tokenize(RAGGED), glass)


def test_it_stops_where_it_is_told_to(glass: pl.CkptedTransformer, stream: Any) -> None:
    _, ckpts = stream
    start = ("blocks.1.resid_pre", ckpts["blocks.1.resid_pre"])
    logits, seen = glass.run_with_ckpts(RAGGED, start_at=start, stop_at="blocks.1.resid_mid")
    assert logits is None
    assert list(seen) == [n for n in NAMES if n.startswith("blocks.1.")][:11]
    assert list(glass.run_with_ckpts(RAGGED, start_at=start, names="resid_post")[1]) == [
        "blocks.1.resid_post",
        "blocks.2.resid_post",
    ]


def test_a_compiled_model_starts_there_too(stream: Any) -> None:
    """Under torch.compile a tensor of ids is taken as it is, which must not lose where the run begins."""
    glass, ids = support.glass(), support.some_ids(2, 6)
    value = glass.run_with_ckpts(ids)[1]["blocks.2.resid_pre"] * 0.5
    with torch.no_grad():
        wanted = glass(ids, start_at=("blocks.2.resid_pre", value))
        compiled = torch.compile(glass, backend="eager")
        assert torch.equal(compiled(ids, start_at=("blocks.2.resid_pre", value)), wanted)
        assert not torch.equal(compiled(ids), wanted)
        for name in ("blocks.-1.resid_pre", "blocks.2.resid_post", ("resid_pre", 2)):
            with pytest.raises(Exception, match=r"expected a name such as 'blocks\.4\.resid_pre'"):
                torch.compile(glass, backend="eager")(ids, start_at=(name, value))


def test_gradients_reach_the_stream(glass64: pl.CkptedTransformer) -> None:
    """The gradient of the loss with respect to what enters block 2 is that of the whole run."""
    logits, ckpts = glass64.run_with_ckpts(RAGGED, names="blocks.2.resid_pre", grads=True)
    logits[:, -1].sum().backward()
    value = ckpts["blocks.2.resid_pre"].detach().clone().requires_grad_()
    glass64.run(RAGGED, start_at=("blocks.2.resid_pre", value))[:, -1].sum().backward()
    assert support.close(value.grad, ckpts["blocks.2.resid_pre"].grad)


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (("blocks.1.resid_post", 0), "start-at"), (("blocks.1.attn.ckpt_z", 0), "start-at"),
        (("ckpt_embed", 0), "start-at"),
        ("blocks.1.resid_pre", "start-at"), (("blocks.1.resid_pre", 3.0), "start-at"),
        (("blocks.7.resid_pre", 0), "unknown-checkpoint"), (("resid_pre", 0), "pattern-for-a-name"),
        (("blocks.1.resid_pre", 1), "start-value"), (("blocks.1.resid_pre", 2), "start-value"),
    ],
)  # fmt: skip
def test_where_no_run_can_start(glass: pl.CkptedTransformer, stream: Any, start: Any, code: str) -> None:
    value = stream[1]["blocks.1.resid_pre"]
    values = {0: value, 1: value[:, 1:], 2: value.long()}
    given = (start[0], values[start[1]]) if isinstance(start, tuple) and isinstance(start[1], int) else start
    for call in (glass.run, glass.run_with_ckpts, glass):
        with pytest.raises(pl.PellucidError) as caught:
            call(RAGGED, start_at=given)
        assert caught.value.code == code


def test_the_remedies_work(glass: pl.CkptedTransformer, stream: Any) -> None:
    _, ckpts = stream
    start = ("blocks.1.resid_pre", ckpts["blocks.1.resid_pre"])
    after = r"cannot fire: the run starts at 'blocks\.1\.resid_pre', after it"
    with pytest.raises(pl.UnknownNameError, match=after) as caught:
        glass.run_with_ckpts(RAGGED, start_at=start, names=["blocks.0.resid_post"])
    assert caught.value.code == "checkpoint-before-start"
    with pytest.raises(pl.UnknownNameError, match="starts at"):
        glass.run_with_ckpts(RAGGED, start_at=start, stop_at="blocks.0.resid_post")
    with pytest.raises(pl.EditError, match="never fired"):
        glass.run(RAGGED, start_at=start, edits=pl.Edit.zero("ckpt_embed"))
    with pytest.raises(pl.InputError) as caught_input:
        glass(RAGGED, start_at=start, cache=pl.KeyValueCache(glass.config, 3, 8))
    assert caught_input.value.code == "start-with-cache"
