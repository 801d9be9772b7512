"""The checks that conformance tests pass and that mutants must fail: one function for each promise.

Each raises AssertionError where the promise is broken. `tests/mutants` breaks the library in one place at a time
and shows that the check named for that place notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pellucid as pl
import support

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")
"""Operations that ask for a number, so that the processor waits for an accelerator."""


class Ops(TorchDispatchMode):
    """Counts the operations that reach the dispatcher, by name without the overload."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def count(self, *parts: str) -> int:
        """How many operations have a name that holds one of `parts`."""
        return sum(any(part in name for part in parts) for name in self.names)


class Operands(TorchDispatchMode):
    """Keeps the shapes and strides of what goes into contractions and normalizations, which may round by layout."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("mm") or name.startswith(("native_layer_norm", "_scaled_dot_product")):
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            self.calls.append(f"{name} of {', '.join(f'{list(t.shape)} by {_strides(t)}' for t in tensors)}")
        return func(*args, **(kwargs or {}))


def _strides(tensor: Tensor) -> list[int]:
    """Those of the axes along which there is a step to take."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def operands(run: Callable[[], Any]) -> list[str]:
    """A line for each contraction and normalization of one run."""
    kept = Operands()
    with kept:
        run()
    return kept.calls


def ops(run: Callable[[], Any]) -> Ops:
    """The operations of one run."""
    counter = Ops()
    with counter:
        run()
    return counter


def reference_values(
    hf: Any, ids: Tensor, mask: Tensor | None, positions: Tensor | None, *, eager: bool
) -> dict[str, Tensor]:
    """What transformers computes, under our names; called as its users call it, with the cache on."""
    padded = {} if mask is None else {"attention_mask": mask.long(), "position_ids": positions}
    out = hf(ids, output_hidden_states=True, output_attentions=eager, **padded)
    headless = not hasattr(out, "logits")
    hidden, layers = out.hidden_states, out[support.CACHE_WORD].layers
    values = {f"blocks.{i}.resid_pre": state for i, state in enumerate(hidden[:-1])}
    if hidden:  # transformers gives none where there is no block
        values["ln_final.ckpt_normalized"] = hidden[-1]
    values["logits"] = torch.nn.functional.linear(out.last_hidden_state, hf.wte.weight) if headless else out.logits
    for i, layer in enumerate(layers):
        values[f"blocks.{i}.attn.ckpt_k"] = layer.keys.transpose(1, 2)
        values[f"blocks.{i}.attn.ckpt_v"] = layer.values.transpose(1, 2)
        if eager and not hf.training:  # while training, its attentions are those after dropout
            values[f"blocks.{i}.attn.ckpt_pattern"] = out.attentions[i]
    return values


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor], mask: Tensor | None = None) -> list[str]:
    """A line for every value that is not equal to the bit, at real positions if a mask is given."""
    lines: list[str] = []
    for name, value in theirs.items():
        a, b = ours[name], value
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"{name}: {list(a.shape)} {a.dtype}, reference {list(b.shape)} {b.dtype}")
            continue
        if mask is not None:  # the position axis is the second one, but for patterns: [B, H, Pq, Pk]
            a, b = ((t.transpose(1, 2) if name.endswith("ckpt_pattern") else t)[mask] for t in (a, b))
        if not torch.equal(a, b):
            lines.append(f"{name}: off by up to {float((a.double() - b.double()).abs().max()):.3g}")
    return lines


def exact(
    ours: pl.CkptedTransformer,
    hf: Any,
    ids: Tensor,
    batch: pl.Batch | None = None,
    context: Callable[[], Any] = nullcontext,
) -> None:
    """Logits, hidden states, keys, values and (eager) patterns equal transformers' to the bit."""
    eager = hf.config._attn_implementation == "eager"
    mask, positions = (None, None) if batch is None else (batch.mask, batch.positions)
    state = torch.get_rng_state()
    with torch.no_grad(), context():
        theirs = reference_values(hf, ids, mask, positions, eager=eager)
        torch.set_rng_state(state)
        logits, ckpts = ours.run_with_ckpts(ids if batch is None else batch, names=[n for n in theirs if n != "logits"])
        torch.set_rng_state(state)
        plain = ours(ids if batch is None else batch)
    assert torch.isfinite(plain[mask] if mask is not None else plain).all()
    if min(ours.config.n_embd, ours.config.vocab_size) > 1:
        assert float(plain.float().std()) > 0.1, "the logits hardly vary: nothing is being tested"
    lines = differences({**ckpts, "logits": logits}, theirs, mask)
    lines += differences({"plain logits": plain}, {"plain logits": theirs["logits"]}, mask)
    assert not lines, "\n".join(lines)


def laid_out_alike(ours: pl.CkptedTransformer, hf: Any, inputs: Any) -> None:
    """The same contractions as transformers', of operands that lie in memory as its own do.

    Where kernels do not look at the layout, as on some processors, `exact` alone would not see a difference.
    """
    batch = ours.tokenize(inputs)
    padded = {"attention_mask": batch.mask.long(), "position_ids": batch.positions} if batch.padded else {}
    with torch.no_grad():
        mine, theirs = operands(lambda: ours(batch)), operands(lambda: hf(batch.ids, **padded))
    assert any("mm of" in call for call in theirs)
    assert mine == theirs, "\n".join(f"{a}, reference {b}" for a, b in zip(mine, theirs, strict=False) if a != b)


def last_position(ours: pl.CkptedTransformer, hf: Any, ids: Tensor) -> None:
    """The logits of the last position alone are those that transformers gives when asked for them alone."""
    with torch.no_grad():
        assert torch.equal(ours.next_token_logits(ids), hf(ids, logits_to_keep=1).logits[:, 0])


def by_hand(model: pl.CkptedTransformer, inputs: Any, tolerance: float = 1e-12) -> None:
    """Every checkpoint and the logits equal an independent computation in float64, pads' own values left out."""
    batch = model.tokenize(inputs)
    with torch.no_grad():
        expected_logits, expected = support.by_hand(model, batch.ids, mask=batch.mask)
        logits, ckpts = model.run_with_ckpts(batch)
    assert list(ckpts) == list(expected)
    assert support.close(logits[batch.mask], expected_logits[batch.mask], tolerance), "logits"
    for name, value in expected.items():
        attention = name.endswith(("ckpt_scores", "ckpt_pattern"))
        a, b = (t.transpose(1, 2) if attention else t for t in (ckpts[name], value))
        assert support.close(a[batch.mask], b[batch.mask], tolerance), name


def looking(model: pl.CkptedTransformer, inputs: Any, **options: Any) -> None:
    """The logits of a run that captures equal those of the plain run, and so does the state of the generator."""
    state = torch.get_rng_state()
    with torch.no_grad():
        plain = model(inputs)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        looked, _ = model.run_with_ckpts(inputs, **options)
    assert torch.equal(plain, looked), f"looking at {options} changed the logits"
    assert torch.equal(after, torch.get_rng_state()), f"looking at {options} drew random numbers"


def pattern_alone(model: pl.CkptedTransformer, inputs: Any) -> None:
    """Patterns are the same whether their scores are captured or not."""
    _, alone = model.run_with_ckpts(inputs, names="**.ckpt_pattern")
    _, beside = model.run_with_ckpts(inputs, names=["**.ckpt_pattern", "**.ckpt_scores"])
    assert len(alone) == model.config.n_layer
    assert all(torch.equal(pattern, beside[name]) for name, pattern in alone.items())


def training_draws(model: pl.CkptedTransformer, inputs: Any) -> None:
    """In training mode dropout is on, and off while evaluating."""
    model.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        assert torch.equal(model(inputs), model(inputs)), "an evaluating model gives two answers"
        assert torch.equal(before, torch.get_rng_state()), "an evaluating model draws random numbers"
        model.train()
        assert not torch.equal(model(inputs), model(inputs)), "a training model gives one answer twice"
    model.eval()


def hooks_go_on(model: pl.CkptedTransformer, inputs: Any, names: Iterable[str]) -> None:
    """What a native hook on a checkpoint returns is what the model goes on with."""
    with torch.no_grad():
        plain = model(inputs)
        for name in names:
            # Reversed heads, positions or features: what is put there is finite and of another value.
            handle = model.get_submodule(name).register_forward_hook(lambda module, args, out: out.flip(-1) * 0.5)
            try:
                assert not torch.equal(model(inputs), plain), f"what a hook at {name} returns is dropped"
            finally:
                handle.remove()
        assert torch.equal(model(inputs), plain)


def snapshots(model: pl.CkptedTransformer, inputs: Any) -> None:
    """No two captured values share memory, nor does one share the model's, so that writing into one is harmless."""
    _, ckpts = model.run_with_ckpts(inputs)
    copies = {name: value.clone() for name, value in ckpts.items()}
    owners: dict[int, str] = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
    for name, value in ckpts.items():
        owner = owners.setdefault(value.untyped_storage().data_ptr(), name)
        assert owner == name, f"{name} shares memory with {owner}"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, value in ckpts.items():
        value.fill_(7.0)
        copies[name].fill_(7.0)
        for other, kept in copies.items():
            assert torch.equal(ckpts[other], kept), f"writing into {name} changed {other}"
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def snapshots_of_the_past(model: pl.CkptedTransformer, inputs: Any) -> None:
    """A hook that later writes into the stream in place does not rewrite what was captured before."""
    _, untouched = model.run_with_ckpts(inputs)
    written = "blocks.1.resid_pre"  # the same tensor as blocks.0.resid_post
    handle = model.get_submodule(written).register_forward_hook(lambda module, args, out: out.zero_())
    try:
        _, ckpts = model.run_with_ckpts(inputs)
    finally:
        handle.remove()
    for name in list(ckpts)[: list(ckpts).index(written) + 1]:
        assert torch.equal(ckpts[name], untouched[name]), f"writing at {written} changed {name}"
    assert not torch.equal(ckpts["blocks.1.resid_post"], untouched["blocks.1.resid_post"])


def edits_are_pure(
    model: pl.CkptedTransformer, inputs: Any, edit_of: Callable[[str], pl.Edit], names: Iterable[str]
) -> None:
    """The tensor that arrives at an edited checkpoint still holds what the model computed there."""
    for name in names:
        kept: list[tuple[Tensor, Tensor]] = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda m, args, out, kept=kept: kept.append((args[0], out))
        )
        try:
            model.run_with_ckpts(inputs, names=name, edits=[edit_of(name)])
        finally:
            handle.remove()
        (arrived, left), (_, unedited) = kept[0], model.run_with_ckpts(inputs, names=name)
        assert torch.equal(arrived, unedited[name]), f"an edit at {name} wrote into the model's own tensor"
        assert not torch.equal(left, arrived), f"an edit at {name} changed nothing"


def edits_fit(
    model: pl.CkptedTransformer, inputs: Any, name: str, edits: Sequence[pl.Edit], change: Any, tolerance: float = 1e-12
) -> None:
    """Logits and every value after an edit equal those of the independent computation with the same change."""
    batch = model.tokenize(inputs)
    with torch.no_grad():
        expected_logits, expected = support.by_hand(model, batch.ids, {name: change}, batch.mask)
        plain = model(batch)
        logits, ckpts = model.run_with_ckpts(batch, edits=edits)
    for other, value in expected.items():
        assert support.close(ckpts[other], value, tolerance), f"{other} after an edit at {name}"
    assert support.close(logits, expected_logits, tolerance), f"logits after an edit at {name}"
    assert not support.close(logits, plain, tolerance), f"the edit at {name} changed nothing"


def padding(model: pl.CkptedTransformer, rows: Sequence[list[int]], side: str, tolerance: float) -> None:
    """A text in a padded batch gets the logits, positions and checkpoints that it gets alone."""
    batch = model.tokenize(rows, padding_side=side)
    with torch.no_grad():
        together, captured = model.run_with_ckpts(batch, names=["**.resid_post", "blocks.*.attn.ckpt_z"])
        for number, row in enumerate(rows):
            real = batch.mask[number]
            alone, own = model.run_with_ckpts([row], names=["**.resid_post", "blocks.*.attn.ckpt_z"])
            assert batch.ids[number][real].tolist() == row
            assert batch.positions[number][real].tolist() == list(range(len(row))), "positions"
            assert int(real.sum()) == len(row)
            assert bool(real[-1] if side == "left" else real[0]), f"padded on the other side than {side}"
            assert support.close(together[number][real], alone[0], tolerance), f"row {number} of {len(row)} ids"
            assert torch.equal(together[number][real].argmax(-1), alone[0].argmax(-1))
            for name in own:
                assert support.close(captured[name][number][real], own[name][0], tolerance), f"{name} of row {number}"


def stops(model: pl.CkptedTransformer, inputs: Any) -> None:
    """`stop_at` runs the operations up to its checkpoint and none later; what it captured is that of a whole run."""
    batch = model.tokenize(inputs)
    _, whole = model.run_with_ckpts(batch)
    fewer = 0
    for last in model.ckpt_names:
        entered: list[str] = []
        handles = [
            m.register_forward_hook(lambda mod, args, out, entered=entered: entered.append(mod.name))
            for m in _ckpts(model)
        ]
        try:
            logits, ckpts = model.run_with_ckpts(batch, stop_at=last)
        finally:
            for handle in handles:
                handle.remove()
        assert logits is None
        assert list(ckpts)[-1] == last
        assert list(ckpts) == list(whole)[: len(ckpts)]
        assert all(torch.equal(value, whole[name]) for name, value in ckpts.items())
        # The hook of the last one is not called: the run leaves from inside it.
        assert entered == list(ckpts)[:-1], f"ran on past {last}: {entered[-1]}"
        used = len(ops(lambda last=last: model.run_with_ckpts(batch, names=last, stop_at=last)).names)
        assert used >= fewer, "stopping later runs fewer operations"
        fewer = used if not last.endswith(("ckpt_scaled", "ckpt_scores", "ckpt_pattern")) else fewer
    assert fewer < len(ops(lambda: model(batch)).names)
    projections = ops(lambda: model.run_with_ckpts(batch, names="ckpt_embed", stop_at="ckpt_embed")).count(
        "addmm", "layer_norm"
    )
    assert projections == 0


def stays_fused(model: pl.CkptedTransformer, inputs: Any) -> None:
    """Without a look inside no layer makes a pattern; with one, only the watched layer does, and all stay fused."""
    layers = model.config.n_layer

    def counted(run: Callable[[], Any]) -> tuple[int, int]:
        found = ops(run)
        return found.count("scaled_dot_product", "_fused_attention"), found.count("softmax")

    with torch.no_grad():
        model(inputs)
        calls, softmaxes = counted(lambda: model(inputs))
        assert calls == layers
        assert softmaxes == 0
        everywhere = [n for n in model.ckpt_names if not n.endswith(("ckpt_pattern", "ckpt_scores"))]
        assert counted(lambda: model.run_with_ckpts(inputs, names=everywhere)) == (layers, 0)
        for kind in ("ckpt_pattern", "ckpt_scores"):
            assert counted(lambda kind=kind: model.run_with_ckpts(inputs, names=f"blocks.1.attn.{kind}")) == (layers, 1)
        edit = pl.Edit.scale("blocks.1.attn.ckpt_pattern", 0.5)
        assert counted(lambda: model.run_with_ckpts(inputs, names="ckpt_embed", edits=[edit])) == (layers - 1, 1)


def globs(model: pl.CkptedTransformer) -> None:
    """`*` stays within one dotted part, `**` crosses parts."""

    def chosen(pattern: str) -> list[str]:
        return list(model.run_with_ckpts([[1]], names=pattern)[1])

    layers = range(model.config.n_layer)
    assert chosen("blocks.*.resid_post") == [f"blocks.{i}.resid_post" for i in layers]
    assert chosen("ckpt_*") == ["ckpt_embed", "ckpt_pos_embed"]
    assert chosen("**.ckpt_z") == [f"blocks.{i}.attn.ckpt_z" for i in layers]
    assert chosen("*.ckpt_scaled") == ["ln_final.ckpt_scaled"]
    assert len(chosen("blocks.0.*")) == 3
    assert len(chosen("blocks.0.**")) == 17
    assert chosen("**") == list(model.ckpt_names)


def _ckpts(model: pl.CkptedTransformer) -> list[Any]:
    return [model.get_submodule(name) for name in model.ckpt_names]


def written_to_meanwhile(model: pl.CkptedTransformer, write: str | None) -> list[int]:
    """Forty greedy tokens; after twelve a weight changes its sign, "in place" or "anew" behind torch's back."""
    found: list[int] = []
    for token in model.stream([1, 2, 3], max_new_tokens=40, end_ids=()):
        found.append(token.id)
        weight = model.blocks[2].mlp.W_out
        if len(found) == 12 and write == "in place":
            with torch.no_grad():
                weight.mul_(-1.0)
        if len(found) == 12 and write == "anew":
            weight.data = weight.detach() * -1.0
            model.refresh()
    return found
