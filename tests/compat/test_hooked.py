"""HookedTransformer's interface: hooks, loading, folding, other families, training, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import llamas
import pellucid as pl
import samples
import support
from following import Case, follow, params
from pellucid.compat.hooked import (
    ActivationCache,
    FactoredMatrix,
    HookedRootModule,
    HookedTransformer,
    HookedTransformerConfig,
    HookPoint,
    patching,
    utils,
)
from pellucid.errors import PellucidWarning, ShapeError
from pellucid.prove.copies import deep_copy

IDS = torch.tensor([[5, 30, 17, 25, 9, 41, 7], [8, 31, 17, 50, 92, 10, 9]])
SWITCHES = ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in")


@pytest.fixture
def hooked() -> HookedTransformer:
    """Each test's own; the weights are as in `glass`."""
    return HookedTransformer(support.glass())


@pytest.fixture(scope="module")
def texts() -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("bundled")


def _zeroed(value: Tensor, hook: Any) -> None:
    value.zero_()


def everything(model: HookedTransformer) -> HookedTransformer:
    for switch in SWITCHES:
        getattr(model, f"set_{switch}")(True)
    return model


def test_looking_at_every_value_changes_no_bit(hooked: HookedTransformer) -> None:
    everything(hooked)
    plain = hooked.model(IDS)
    logits, cache = hooked.run_with_cache(IDS)
    assert torch.equal(logits, plain)
    assert list(cache.keys()) == list(hooked.hook_dict)
    assert torch.equal(hooked(IDS), plain)


def test_values_are_those_of_the_checkpoints(hooked: HookedTransformer) -> None:
    _, cache = hooked.run_with_cache(IDS)
    _, ckpts = hooked.model.run_with_ckpts(IDS)
    for name in ("hook_embed", "blocks.1.attn.hook_q", "blocks.2.hook_mlp_out", "blocks.0.ln2.hook_normalized"):
        assert torch.equal(cache[name], ckpts[name]), name
    stream = ckpts["blocks.1.resid_pre"]
    centred = stream - stream.mean(-1, keepdim=True)
    torch.testing.assert_close(centred / cache["scale", 1, "ln1"], ckpts["blocks.1.ln1.ckpt_scaled"])
    scores, masked = cache["attn_scores", 0], torch.ones(7, 7).tril() == 0
    assert bool((scores[..., masked] == -torch.inf).all())
    assert torch.equal(scores[..., ~masked], ckpts["blocks.0.attn.ckpt_scores"][..., ~masked])


@pytest.mark.parametrize("name", ["hook_embed", "blocks.1.hook_resid_mid", "blocks.1.attn.hook_v", "unembed.hook_out"])
def test_a_hook_may_return_a_value_or_write_into_it(name: str, hooked: HookedTransformer) -> None:
    def returns(value: Tensor, hook: Any) -> Tensor:
        return value * 2

    def writes(value: Tensor, hook: Any) -> None:
        value *= 2

    one = hooked.run_with_hooks(IDS, fwd_hooks=[(name, returns)])
    other = hooked.run_with_hooks(IDS, fwd_hooks=[(name, writes)])
    assert torch.equal(one, other)
    assert not torch.equal(one, hooked(IDS))


def test_a_hook_that_writes_leaves_what_was_kept_before(hooked: HookedTransformer) -> None:
    """The stream that leaves a block and the one that enters the next are one tensor."""
    plain = hooked.run_with_cache(IDS)[1]["blocks.0.hook_resid_post"]
    kept: dict[str, Tensor] = {}
    hooks: list[tuple[str, Callable[..., Any]]] = [
        ("blocks.0.hook_resid_post", lambda value, hook: kept.update(before=value)),
        ("blocks.1.hook_resid_pre", _zeroed),
    ]
    hooked.run_with_hooks(IDS, fwd_hooks=hooks)
    assert torch.equal(kept["before"], plain)


@pytest.mark.parametrize("end", ["mean", "raise"])
def test_hooks_of_a_run_are_gone_after_it(end: str, hooked: HookedTransformer) -> None:
    def hook(value: Tensor, hook: Any) -> Tensor:
        if end == "raise":
            raise RuntimeError("a hook's own fault")
        return value.mean() + value * 0

    plain = hooked(IDS)
    hooked.add_perma_hook("hook_pos_embed", lambda value, hook: None)
    if end == "raise":
        with pytest.raises(RuntimeError, match="own fault"):
            hooked.run_with_hooks(IDS, fwd_hooks=[("hook_embed", hook)])
    else:
        assert not torch.equal(hooked.run_with_hooks(IDS, fwd_hooks=[("hook_embed", hook)]), plain)
    assert torch.equal(hooked(IDS), plain)
    assert [name for name, point in hooked.hook_dict.items() if point.has_hooks()] == ["hook_pos_embed"]
    hooked.reset_hooks()
    assert hooked.hook_dict["hook_pos_embed"].has_hooks()
    hooked.reset_hooks(including_permanent=True)
    assert not hooked.hook_dict["hook_pos_embed"].has_hooks()


def test_hooks_stay_until_they_are_reset_and_come_in_order(hooked: HookedTransformer) -> None:
    called: list[str] = []
    hooked.add_hook("hook_embed", lambda value, hook: called.append("added"))
    hooked.blocks[1].attn.hook_z.add_hook(lambda value, hook: called.append(f"{hook.name} {hook.layer()}"))
    hooked.add_hook(lambda name: name == "hook_embed", lambda value, hook: called.append("first"), prepend=True)
    with hooked.hooks(fwd_hooks=[("hook_embed", lambda value, hook: hook.ctx.update(seen=1))]) as inside:
        inside(IDS)
        assert hooked.hook_dict["hook_embed"].ctx == {"seen": 1}
    assert called == ["first", "added", "blocks.1.attn.hook_z 1"]
    hooked(IDS)
    assert called[3:] == ["first", "added", "blocks.1.attn.hook_z 1"]
    hooked.reset_hooks()
    assert hooked.hook_dict["hook_embed"].ctx == {}
    hooked(IDS)
    assert len(called) == 6


def test_hooks_of_an_inner_with_leave_those_of_the_outer(hooked: HookedTransformer) -> None:
    def halve(value: Tensor, hook: Any) -> Tensor:
        return value / 2

    with hooked.hooks(fwd_hooks=[("hook_embed", halve)]):
        outer = hooked(IDS)
        hooked.run_with_hooks(IDS, fwd_hooks=[("hook_embed", halve)])
        assert torch.equal(hooked(IDS), outer)
    assert not torch.equal(hooked(IDS), outer)


def test_a_cache_sees_what_hooks_put_there(hooked: HookedTransformer) -> None:
    hooked.add_hook("blocks.1.hook_resid_pre", lambda value, hook: value * 0)
    _, cache = hooked.run_with_cache(IDS)
    assert not cache["resid_pre", 1].any()
    dictionary = hooked.run_with_cache(IDS, return_cache_object=False, names_filter=["hook_embed"])[1]
    assert list(dictionary) == ["hook_embed"]


def test_gradients_reach_hooks_on_the_way_back_and_may_be_replaced(hooked: HookedTransformer) -> None:
    loss, cache = hooked.run_with_cache(IDS, return_type="loss", incl_bwd=True)
    assert loss.requires_grad
    hooked.zero_grad()
    hooked(IDS, return_type="loss").backward()
    whole = hooked.model.embed.W_E.grad
    hooked.zero_grad()
    assert cache["blocks.1.hook_resid_pre_grad"].abs().max() > 0
    with hooked.hooks(bwd_hooks=[("hook_embed", lambda gradient, hook: gradient * 0)]):
        hooked(IDS, return_type="loss").backward()
    head = hooked.model.embed.W_E.grad  # tied: what the head gives it is left
    assert whole is not None
    assert head is not None
    torch.testing.assert_close((whole - head)[IDS[0, :2]], cache["hook_embed_grad"][0, :2])


def test_adding_hooks_that_keep_values(hooked: HookedTransformer) -> None:
    kept = hooked.add_caching_hooks(lambda name: name.endswith("hook_pattern"))
    assert hooked.is_caching
    hooked(IDS)
    assert list(kept) == [f"blocks.{i}.attn.hook_pattern" for i in range(3)]
    hooked.reset_hooks()
    kept.clear()
    hooked(IDS)
    assert not kept


def test_weights_are_the_models_own_and_can_be_written(hooked: HookedTransformer) -> None:
    assert hooked.blocks[1].attn.W_Q.data_ptr() == hooked.model.blocks[1].attn.W_Q.data_ptr()
    before = hooked(IDS)
    hooked.blocks[1].attn.W_Q = torch.zeros(4, 48, 12)
    assert not hooked.W_Q[1].any()
    assert not torch.equal(hooked(IDS), before)
    with pytest.raises(ShapeError, match=r"expected \[4, 48, 12\]"):
        hooked.blocks[1].attn.W_Q = torch.zeros(4, 48, 13)
    stream = torch.randn(2, 7, 48)
    assert torch.equal(hooked.unembed(hooked.ln_final(stream)), hooked.model.unembed(hooked.model.ln_final(stream)))


def test_opening_says_once_that_nothing_is_folded() -> None:
    with pytest.warns(PellucidWarning, match="weights are left as they are") as caught:
        model = HookedTransformer.from_pretrained("bundled")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HookedTransformer.from_pretrained_no_processing("bundled")
        HookedTransformer.from_pretrained("bundled", fold_ln=False)
    assert model.cfg.normalization_type == "LN"
    assert model.cfg.d_vocab == 4096


def test_folding_is_done_when_it_is_asked_for() -> None:
    model = support.glass(dtype=torch.float64)
    plain = HookedTransformer(model)
    folded = HookedTransformer.from_pretrained(
        model, fold_ln=True, center_writing_weights=True, center_unembed=True, fold_value_biases=True
    )
    assert folded.cfg.normalization_type == "LNPre"
    assert folded.b_U.abs().max() > 0
    one, other = (at(IDS).log_softmax(-1) for at in (plain, folded))
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    _, cache = folded.run_with_cache(IDS)
    assert cache["resid_post", 1].mean(-1).abs().max() < 1e-12
    parts, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    torch.testing.assert_close(parts.sum(0), cache["resid_post", 2])
    assert labels[-1] == "bias"
    logits = cache.logit_attrs(parts, 7).sum(0) + folded.b_U[7]
    torch.testing.assert_close(logits, folded(IDS)[..., 7])


def test_a_transformers_model_and_its_tokenizer(texts: HookedTransformer, tmp_path: Any) -> None:
    import transformers

    texts.model.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = HookedTransformer.from_pretrained_no_processing("x", hf_model=pl.to_hf(texts.model), tokenizer=theirs)
    assert torch.equal(model("Once upon a time"), texts("Once upon a time"))


@pytest.mark.parametrize("biases", [False, True])
def test_another_family(biases: bool) -> None:
    """Grouped heads, rotated queries, a gated MLP, norms without a mean."""
    model = llamas.glass(dtype=torch.float64, attention_bias=biases, mlp_bias=biases)
    hooked = HookedTransformer(model)
    for switch in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
        getattr(hooked, f"set_{switch}")(True)
    ids = llamas.some_ids(2, 6)
    logits, cache = hooked.run_with_cache(ids)
    assert torch.equal(logits, model(ids))
    assert hooked.cfg.normalization_type == "RMS"
    assert hooked.cfg.n_key_value_heads == 2
    assert cache["k", 0].shape == (2, 6, 2, 10)
    assert cache["rot_q", 0].shape == (2, 6, 6, 10)
    assert cache["blocks.1.mlp.hook_pre_linear"].shape == (2, 6, 41)
    heads = cache.stack_head_results(incl_remainder=True)
    torch.testing.assert_close(heads.sum(0), cache["resid_post", 2])
    for name in ("blocks.1.hook_k_input", "blocks.1.hook_q_input", "blocks.1.hook_mlp_in", "blocks.1.ln2.hook_scale"):
        changed = hooked.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: value + 0.0)])
        # a Llama's norm takes its root in float32, whatever the dtype; here it is taken in the model's
        torch.testing.assert_close(changed, logits, atol=1e-5, rtol=0)
        other = hooked.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: value * 1.5 + 0.1)])
        assert (other - logits).abs().max() > 1e-6, name
    assert hooked.accumulated_bias(2).abs().max() > 0 if biases else not hooked.accumulated_bias(2).any()


@pytest.mark.parametrize("parallel", [True, False])
def test_a_family_whose_mlp_may_stand_beside_its_heads(parallel: bool) -> None:
    model = samples.glass("gpt_neox", dtype=torch.float64, use_parallel_residual=parallel)
    hooked = everything(HookedTransformer(model))
    ids = samples.some_ids(2, 6)
    logits, cache = hooked.run_with_cache(ids)
    assert torch.equal(logits, model(ids))
    assert hooked.cfg.parallel_attn_mlp == parallel
    assert hooked.cfg.original_architecture == "GPTNeoXForCausalLM"
    assert hooked.cfg.normalization_type == "LN"
    torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", 2])
    for name in ("hook_attn_in", "hook_v_input", "hook_mlp_in", "ln1.hook_scale", "ln2.hook_scale", "attn.hook_result"):
        changed = hooked.run_with_hooks(ids, fwd_hooks=[(f"blocks.1.{name}", lambda value, hook: value + 0.0)])
        torch.testing.assert_close(changed, logits, msg=name)
    stream = cache["blocks.1.hook_resid_pre" if parallel else "blocks.1.hook_resid_mid"]
    assert torch.equal(cache["blocks.1.hook_mlp_in"], stream)


def test_looking_in_inference_mode_changes_no_bit(hooked: HookedTransformer) -> None:
    with torch.inference_mode():
        logits, cache = everything(hooked).run_with_cache(IDS)
        assert torch.equal(logits, hooked.model(IDS))
        halved = hooked.run_with_hooks(IDS, fwd_hooks=[("hook_embed", _zeroed)])
    assert len(cache) == len(hooked.hook_dict)
    assert not torch.equal(halved, logits)


def test_directions_are_those_of_ids_of_any_shape(hooked: HookedTransformer) -> None:
    W_U, pairs = hooked.model.unembed.W_U, IDS[:, :6].reshape(2, 3, 2)
    assert torch.equal(hooked.tokens_to_residual_directions(pairs), W_U.T[pairs])
    for one in (5, IDS[0, 0], IDS[0, :1], IDS[:1, :1]):
        assert torch.equal(hooked.tokens_to_residual_directions(one), W_U[:, 5])


def test_a_run_between_two_blocks_gives_the_stream_whatever_is_asked_of_the_end(hooked: HookedTransformer) -> None:
    stream = hooked(hooked(IDS, stop_at_layer=1), start_at_layer=1, stop_at_layer=2, return_type="loss")
    assert torch.equal(stream, hooked(IDS, stop_at_layer=2))


def test_every_hook_has_a_copy_of_its_own_to_keep(hooked: HookedTransformer) -> None:
    kept: list[Tensor] = []
    hooks = [("hook_embed", lambda value, hook: kept.append(value)), ("hook_embed", _zeroed)]
    hooked.run_with_hooks(IDS, fwd_hooks=hooks)
    assert torch.equal(kept[0], hooked.run_with_cache(IDS)[1]["hook_embed"])


def test_a_fresh_model_is_trained() -> None:
    cfg = HookedTransformerConfig(n_layers=1, d_model=16, n_ctx=8, d_head=8, d_vocab=11, act_fn="gelu_new", seed=3)
    model, again = HookedTransformer(cfg), HookedTransformer(cfg)
    assert torch.equal(model.W_E, again.W_E)
    ids = torch.randint(0, 11, (8, 8), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses: list[float] = []
    for _ in range(20):
        loss = model(ids, return_type="loss")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_generation_calls_hooks_and_texts_of_unequal_length_go_on_where_they_end(texts: HookedTransformer) -> None:
    prompts = ["Once upon a time", "The cat sat on the"]
    together = texts.generate(prompts, max_new_tokens=5, do_sample=False)
    alone = [texts.generate(prompt, max_new_tokens=5, do_sample=False) for prompt in prompts]
    assert together == alone
    seen: list[tuple[int, ...]] = []
    with texts.hooks(fwd_hooks=[("hook_embed", lambda value, hook: seen.append(tuple(value.shape[:2])))]):
        texts.generate(prompts[0], max_new_tokens=3, do_sample=False)
    assert seen == [(1, 5), (1, 1), (1, 1)]


def test_an_end_ends_a_row(texts: HookedTransformer) -> None:
    first = texts.generate("Once upon a", max_new_tokens=1, do_sample=False, return_type="tokens")[0, -1].item()
    ids = texts.generate("Once upon a", max_new_tokens=6, do_sample=False, eos_token_id=first, return_type="tokens")
    assert ids.shape == (1, 5)


def test_prompts_are_tested_as_there(texts: HookedTransformer, capsys: pytest.CaptureFixture[str]) -> None:
    utils.test_prompt("Once upon a", "time", texts, top_k=1)
    said = capsys.readouterr().out
    assert "Rank: 0" in said
    assert "Token: | time|" in said


def test_patching_by_a_table_of_indices(hooked: HookedTransformer) -> None:
    import pandas as pd

    cache = hooked.run_with_cache(IDS[:1])[1]

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 3]

    with torch.no_grad():
        sweep = patching.get_act_patch_resid_pre(hooked, IDS[1:], cache, metric)
        table = pd.DataFrame({"layer": [2, 0], "pos": [6, 1]})
        some, given = patching.generic_activation_patch(
            hooked, IDS[1:], cache, metric, patching.layer_pos_patch_setter, "resid_pre", index_df=table,
            return_index_df=True,
        )  # fmt: skip
    assert given is table
    assert some.tolist() == [sweep[2, 6].item(), sweep[0, 1].item()]


def test_factored_matrices_are_their_products() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 2, 9, 4, dtype=torch.float64, generator=generator)
    b = torch.randn(2, 4, 9, dtype=torch.float64, generator=generator)
    matrix, dense = FactoredMatrix(a, b), a @ b
    close = torch.testing.assert_close
    close(matrix.AB, dense)
    close(matrix[1].AB, dense[1])
    close(matrix[:, 1, 2:5, 3].AB, dense[:, 1, 2:5, 3:4])
    close((matrix @ matrix.T).AB, dense @ dense.mT)
    close(matrix.U * matrix.S[..., None, :] @ matrix.Vh.mT, dense)
    close(matrix.make_even().AB, dense)
    close(matrix.norm(), dense.norm(dim=(-2, -1)))
    vector = torch.randn(9, dtype=torch.float64, generator=generator, requires_grad=True)
    close(matrix @ vector, dense @ vector)
    close(vector @ matrix, vector @ dense)
    assert (matrix @ vector).requires_grad
    assert isinstance(matrix.mT, FactoredMatrix)
    scores = utils.composition_scores(matrix, matrix, broadcast_dims=True)
    expected = torch.einsum("abij,cdjk->abcdik", dense, dense).norm(dim=(-2, -1))
    close(scores, expected / (matrix.norm()[:, :, None, None] * matrix.norm()))


class Squares(HookedRootModule):
    """A module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_square, self.inner = HookPoint(), torch.nn.ModuleDict({"hook_sum": HookPoint()})
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["hook_sum"](self.hook_square(x * x) + 1)


def test_hooks_on_a_module_of_ones_own() -> None:
    module = Squares()
    out, cache = module.run_with_cache(torch.tensor([2.0, 3.0]))
    assert out.tolist() == [5.0, 10.0]
    assert {name: value.tolist() for name, value in cache.items()} == {
        "hook_square": [4.0, 9.0], "inner.hook_sum": [5.0, 10.0]}  # fmt: skip
    hooks = [("hook_square", lambda value, hook: value * 0)]
    assert module.run_with_hooks(torch.tensor([2.0, 3.0]), fwd_hooks=hooks).tolist() == [1.0, 1.0]


Here = HookedTransformer


def _hook(
    model: Here, name: str = "hook_embed", hook: Callable[..., Any] = lambda value, hook: None, **more: Any
) -> None:
    model.add_hook(name, hook, **more)
    try:
        model("Once upon a time")
    finally:
        model.reset_hooks()


def _cached(model: Here, **more: Any) -> ActivationCache:
    return model.run_with_cache("Once upon a time", **more)[1]


CFG: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_ctx": 8, "d_head": 8, "d_vocab": 11}


def _patched(model: Here, tokens: Any = None, cache: Any = None, metric: Any = torch.sum) -> Any:
    tokens = model.to_tokens("A cat sat on") if tokens is None else tokens
    return patching.get_act_patch_resid_pre(model, tokens, _cached(model) if cache is None else cache, metric)


REMEDIES: dict[str, list[Case]] = {
    "unknown-hook-point": [
        Case(lambda at: _hook(at, "hook_embd"), "'hook_embed'", lambda at: _hook(at, "hook_embed")),
        Case(lambda at: _cached(at)[0, "pattern"], "('pattern', 0)", lambda at: _cached(at)["pattern", 0]),
        Case(
            lambda at: _cached(at, names_filter=["hook_embd"]),
            "'hook_embed'",
            lambda at: _cached(at, names_filter=["hook_embed"]),
        ),
    ],
    "hook-direction": [
        Case(lambda at: _hook(at, dir="forward"), "dir='fwd'", lambda at: _hook(at, dir="fwd")),
    ],
    "hook-value": [
        Case(
            lambda at: _hook(at, hook=lambda value, hook: value[:, 0]),
            "shape and dtype",
            lambda at: _hook(at, hook=lambda value, hook: value.flip(1)),
        ),
    ],
    "hook-without-layer": [
        Case(
            lambda at: at.hook_dict["hook_embed"].layer(),
            "blocks.",
            lambda at: at.hook_dict["blocks.0.hook_mlp_out"].layer(),
        ),
    ],
    "hook-not-computed": [
        Case(
            lambda at: _hook(at, "blocks.0.attn.hook_result"),
            "model.set_use_attn_result(True)",
            lambda at: (at.set_use_attn_result(True), _hook(at, "blocks.0.attn.hook_result")),
        ),
        Case(
            lambda at: at.add_caching_hooks("blocks.0.attn.hook_result"),
            "model.set_use_attn_result(True)",
            lambda at: (at.set_use_attn_result(True), at.add_caching_hooks("blocks.0.attn.hook_result")),
        ),
    ],
    "hooked-weight": [
        Case(
            lambda at: setattr(at.blocks[0].mlp, "b_in", torch.zeros(3)),
            "tensor of that shape",
            lambda at: setattr(at.blocks[0].mlp, "b_in", torch.zeros(1024)),
        ),
    ],
    "hooked-unsupported": [
        Case(lambda at: at("a", past_kv_cache=1), "model.generate", lambda at: at.generate("a", max_new_tokens=1)),
        Case(
            lambda at: HookedTransformer.from_pretrained("bundled", fold_ln=False, first_n_layers=1),
            "Leave first_n_layers= out.",
            lambda at: HookedTransformer.from_pretrained("bundled", fold_ln=False),
        ),
        Case(
            lambda at: HookedTransformer(llamas.glass()).set_use_attn_in(True),
            "set_use_split_qkv_input(True)",
            lambda at: HookedTransformer(llamas.glass()).set_use_split_qkv_input(True),
        ),
        Case(
            lambda at: HookedTransformer.from_pretrained_no_processing(at.model, dtype="float64"),
            "model.to(dtype=...)",
            lambda at: HookedTransformer.from_pretrained_no_processing(at.model.to(dtype=torch.float64)),
        ),
    ],
    "hooked-return-type": [
        Case(lambda at: at("a", return_type="probs"), "Give one", lambda at: at("a", return_type="both")),
        Case(
            lambda at: at(at(IDS, stop_at_layer=2), start_at_layer=2, return_type="loss"),
            "Give tokens=",
            lambda at: at(at(IDS, stop_at_layer=2), start_at_layer=2, return_type="loss", tokens=IDS),
        ),
    ],
    "hooked-layer": [
        Case(lambda at: at("a b", stop_at_layer=5), "from the end", lambda at: at("a b", stop_at_layer=-1)),
        Case(
            lambda at: _cached(at).stack_activation("pattern", layer=-9),
            "from the end",
            lambda at: _cached(at).stack_activation("pattern", layer=-2),
        ),
    ],
    "hooked-tokenizer": [
        Case(
            lambda at: HookedTransformer(at.model, tokenizer="gpt2"),
            "pl.Tokenizer",
            lambda at: HookedTransformer(at.model, tokenizer=at.tokenizer),
        ),
    ],
    "hooked-config": [
        Case(
            lambda at: HookedTransformer(HookedTransformerConfig(**CFG, act_fn="relu", attn_only=True)),
            "as they are by default",
            lambda at: HookedTransformer(HookedTransformerConfig(**CFG, act_fn="relu")),
        ),
        Case(
            lambda at: HookedTransformer(HookedTransformerConfig(**CFG)),
            "act_fn=",
            lambda at: HookedTransformer(HookedTransformerConfig(**CFG, act_fn="relu")),
        ),
        Case(
            lambda at: HookedTransformer({**CFG, "act_fn": "relu", "seeds": 3}),
            "Leave them out",
            lambda at: HookedTransformer({**CFG, "act_fn": "relu", "seed": 3}),
        ),
    ],
    "composition-mode": [
        Case(lambda at: at.all_composition_scores("O"), "mode='V'", lambda at: at.all_composition_scores("V")),
    ],
    "token-not-there": [
        Case(
            lambda at: at.get_token_position("time", "Once upon a time"),
            "begins with its space",
            lambda at: at.get_token_position(" time", "Once upon a time"),
        ),
        Case(
            lambda at: at.get_token_position(" time", "Once upon a time", mode="middle"),
            "mode='last'",
            lambda at: at.get_token_position(" time", "Once upon a time", mode="last"),
        ),
    ],
    "ids-kind": [
        Case(lambda at: at.to_string([0.5]), "whole numbers", lambda at: at.to_string([5])),
        Case(lambda at: at(None), "whole numbers", lambda at: at([5])),
        Case(
            lambda at: at.tokens_to_residual_directions(10**6),
            "whole numbers",
            lambda at: at.tokens_to_residual_directions(10),
        ),
    ],
    "several-rows": [
        Case(
            lambda at: at.to_str_tokens([[5, 6], [7, 8]]),
            "each row",
            lambda at: [at.to_str_tokens(row) for row in ([5, 6], [7, 8])],
        ),
        Case(
            lambda at: at.run_with_cache(["a", "b"])[1].remove_batch_dim(),
            "apply_slice_to_batch_dim(0)",
            lambda at: at.run_with_cache(["a", "b"])[1].apply_slice_to_batch_dim(0),
        ),
    ],
    "no-batch-axis": [
        Case(
            lambda at: _cached(at, remove_batch_dim=True).apply_slice_to_batch_dim(0),
            "without remove_batch_dim",
            lambda at: _cached(at).apply_slice_to_batch_dim(0),
        ),
    ],
    "decompose-mode": [
        Case(
            lambda at: _cached(at).decompose_resid(mode="heads"),
            "mode='mlp'",
            lambda at: _cached(at).decompose_resid(mode="mlp"),
        ),
    ],
    "sampling-range": [
        Case(lambda at: at.generate("a", 1, top_p=0.0), "top_p above 0", lambda at: at.generate("a", 1, top_p=0.5)),
        Case(lambda at: at.generate("a", 1, top_k="x"), "top_k 1 or more", lambda at: at.generate("a", 1, top_k=1)),
    ],
    "patch-indices": [
        Case(
            lambda at: patching.generic_activation_patch(
                at, IDS[:1], _cached(at), torch.sum, patching.layer_pos_patch_setter, "z"
            ),
            "index_axis_names=('layer', 'pos')",
            lambda at: patching.get_act_patch_resid_pre(at, at.to_tokens("A cat sat on"), _cached(at), torch.sum),
        ),
    ],
    "patch-arguments": [
        Case(
            lambda at: _patched(at, tokens="A cat sat on"),
            "model.to_tokens(texts)",
            lambda at: _patched(at, tokens=at.to_tokens("A cat sat on")),
        ),
        Case(
            lambda at: patching.get_act_patch_resid_pre(at, _cached(at), at.to_tokens("A cat sat on"), torch.sum),
            "model.to_tokens(texts)",
            _patched,
        ),
        Case(lambda at: _patched(at, metric=3.0), "a function of the logits", _patched),
        Case(lambda at: _patched(at, cache=_cached(at)["embed"]), "run_with_cache(clean_tokens)", _patched),
        Case(
            lambda at: patching.get_act_patch_resid_pre(at.model, IDS, _cached(at), torch.sum),
            "Give the HookedTransformer first",
            _patched,
        ),
        *(
            Case(
                lambda at, text=text: _patched(at, tokens=at.to_tokens(text)),
                "of the same lengths",
                _patched,
            )
            for text in ("A cat sat on the mat", "A cat", ["A cat sat on"] * 2)
        ),
    ],
    "metric-shape": [
        Case(
            lambda at: _patched(at, metric=lambda logits: logits[0, -1, :2]),
            ".mean()",
            lambda at: _patched(at, metric=lambda logits: logits[0, -1, :2].mean()),
        ),
    ],
    "unknown-argument": [
        Case(
            lambda at: _cached(at, name_filter="hook_embed"),
            "'names_filter'",
            lambda at: _cached(at, names_filter="hook_embed"),
        ),
        Case(
            lambda at: at.run_with_hooks("A cat", fwd_hook=[]),
            "'fwd_hooks'",
            lambda at: at.run_with_hooks("A cat", fwd_hooks=[]),
        ),
    ],
    "factors-index": [
        Case(lambda at: at.OV[0, 0, 0, 0, 0], "at most 4", lambda at: at.OV[0, 0, 0, 0]),
    ],
    "slice-kind": [
        Case(lambda at: _cached(at, pos_slice="last"), "-1", lambda at: _cached(at, pos_slice=-1)),
        Case(lambda at: _cached(at, pos_slice=9), "entries that exist", lambda at: _cached(at, pos_slice=-1)),
        Case(lambda at: utils.Slice(()), "(1, 4) for a range", lambda at: utils.Slice((1, 4))),
    ],
    "slice-without-length": [
        Case(lambda at: utils.Slice((1, 3)).indices(), "max_ctx=", lambda at: utils.Slice((1, 3)).indices(max_ctx=4)),
    ],
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies(code: str, case: Case, bundled: pl.CkptedTransformer) -> None:
    follow(code, case, HookedTransformer(deep_copy(bundled, {})))


@pytest.mark.remedy("no-beginning")
def test_a_tokenizer_without_a_beginning(tmp_path: Any) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 1, "b": 2, "?": 0}, unk_token="?"))
    model = support.glass()
    model.tokenizer = pl.Tokenizer(backend)
    hooked = HookedTransformer(model)
    with pytest.raises(pl.InputError) as error:
        hooked.to_tokens("a")
    assert error.value.code == "no-beginning"
    hooked.cfg.default_prepend_bos = False
    assert hooked.to_tokens("a").tolist() == [[1]]
