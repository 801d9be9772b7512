"""Bad input of every kind: an error of ours with a code and a remedy, nothing on disk, the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from pellucid.errors import PellucidError

Model = pl.CkptedTransformer
GOOD = {"vocab_size": 11, "n_positions": 8, "n_embd": 6, "n_layer": 2, "n_head": 2}
IDS = support.some_ids(2, 7)
POSITIONS = torch.arange(7).expand(2, 7)
EDIT = pl.Edit


@dataclass(frozen=True)
class Bad:
    """One thing that goes wrong.

    Args:
        what: For people.
        code: Of the error that is expected.
        act: Does it, given a model (which has a pad id, 210) and an empty folder.
        error: The class that is expected.
    """

    what: str
    code: str
    act: Callable[[Model, Path], Any]
    error: type[PellucidError] = PellucidError


def config(**fields: Any) -> Callable[[Model, Path], Any]:
    return lambda model, folder: pl.TransformerConfig(**{**GOOD, **fields})


def parsed(ignore: tuple[str, ...] = (), without: str | None = None, **fields: Any) -> Callable[[Model, Path], Any]:
    given = {name: value for name, value in {**GOOD, **fields}.items() if name != without}
    return lambda model, folder: pl.TransformerConfig.from_dict(given, ignore=ignore)


def runs(inputs: Any) -> Callable[[Model, Path], Any]:
    return lambda model, folder: model(inputs)


def masked(mask: Any, ids: Any = IDS) -> Callable[[Model, Path], Any]:
    return lambda model, folder: model.tokenize(ids, mask=mask)


def captures(**options: Any) -> Callable[[Model, Path], Any]:
    return lambda model, folder: model.run_with_ckpts(IDS, **options)


def edits(*made: Any, **options: Any) -> Callable[[Model, Path], Any]:
    return captures(edits=list(made), **options)


def loads(name: Any, **options: Any) -> Callable[[Model, Path], Any]:
    return lambda model, folder: pl.load(folder / "absent" / name if name else folder, **options)


def load_with_file(content: bytes, name: str = "model.safetensors", **options: Any) -> Callable[[Model, Path], Any]:
    def act(model: Model, folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        try:
            pl.load(path, config=model.config, **options)
        finally:
            assert path.read_bytes() == content
            path.unlink()

    return act


def unreadable_ckpts(model: Model, folder: Path) -> None:
    path = folder / "run.safetensors"
    path.write_bytes(b"\x00" * 40)
    try:
        pl.ActivationCkpts.load(path)
    finally:
        path.unlink()


def batch_of(**parts: torch.Tensor) -> pl.Batch:
    """A batch made by hand; `parts` replace its right ones."""
    return pl.Batch(**{"ids": IDS, "mask": torch.ones(2, 7, dtype=torch.bool), "positions": POSITIONS, **parts})


def mask_of(value: float, at: tuple[int, ...] = (0, 0)) -> torch.Tensor:
    mask = torch.ones(2, 7)
    mask[at] = value
    return mask


C, I, U, E, W = pl.ConfigError, pl.InputError, pl.UnknownNameError, pl.EditError, pl.WeightsError  # noqa: E741

CONFIGS = [
    Bad("heads that do not divide the width", "config-heads-do-not-divide", config(n_head=4), C),
    Bad("no heads", "config-out-of-range", config(n_head=0), C),
    Bad("negative layers", "config-out-of-range", config(n_layer=-1), C),
    Bad("no vocabulary", "config-out-of-range", config(vocab_size=0), C),
    Bad(
        "a vocabulary beyond any memory", "config-out-of-range",
        lambda model, folder: pl.CkptedTransformer(model.config.replace(vocab_size=10**15)), C,
    ),
    Bad("no positions", "config-out-of-range", config(n_positions=0), C),
    Bad("negative mlp", "config-out-of-range", config(n_inner=-2), C),
    Bad("width as text", "config-wrong-type", config(n_embd="6"), C),
    Bad("width as a fraction", "config-wrong-type", config(n_embd=6.5), C),
    Bad("layers as a bool", "config-wrong-type", config(n_layer=True), C),
    Bad("epsilon as text", "config-wrong-type", config(layer_norm_epsilon="1e-5"), C),
    Bad("negative epsilon", "config-out-of-range", config(layer_norm_epsilon=-1e-5), C),
    Bad("epsilon that is not a number", "config-out-of-range", config(layer_norm_epsilon=float("nan")), C),
    Bad("infinite epsilon", "config-out-of-range", config(layer_norm_epsilon=float("inf")), C),
    Bad("dropout above one", "config-out-of-range", config(attn_pdrop=1.5), C),
    Bad("negative dropout", "config-out-of-range", config(resid_pdrop=-0.1), C),
    Bad("dropout as null", "config-wrong-type", config(embd_pdrop=None), C),
    Bad("a flag as a number", "config-wrong-type", config(scale_attn_weights=1), C),
    Bad("a flag as text", "config-wrong-type", config(tie_word_embeddings="false"), C),
    Bad("unknown activation", "config-activation", config(activation_function="gelu_old"), C),
    Bad("activation with parameters", "config-activation", config(activation_function="prelu"), C),
    Bad("activation as a list", "config-activation", config(activation_function=["gelu"]), C),
    Bad("end id as text", "config-wrong-type", config(eos_token_id="5"), C),
    Bad("end id as a bool", "config-wrong-type", config(eos_token_id=True), C),
    Bad("end ids of two kinds", "config-wrong-type", config(eos_token_id=[5, "6"]), C),
    Bad("a size under a misspelt name", "config-missing-field", parsed(without="n_embd", n_embed=6), C),
    Bad("end id that no integer holds", "config-out-of-range", config(eos_token_id=2**63), C),
    Bad("size missing", "config-missing-field", parsed(without="n_head"), C),
    Bad("another model", "config-model-type", parsed(model_type="mamba"), C),
    Bad("code of its own", "config-not-implemented", parsed(auto_map={"AutoModel": "x.Y"}), C),
    Bad("quantized", "config-not-implemented", parsed(quantization_config={"bits": 4}), C),
    Bad("cross-attention", "config-not-implemented", parsed(add_cross_attention=True), C),
    Bad("multi-query", "config-not-implemented", parsed(attention_head_type="multiquery"), C),
    Bad("muP", "config-not-implemented", parsed(attn_mult=8.0), C),
    Bad("bidirectional", "config-not-implemented", parsed(is_causal=False), C),
    Bad("override that does not exist", "config-unknown-field",
        lambda model, folder: pl.TransformerConfig.from_pretrained("gpt2-small", n_head_count=3), C),
    Bad("override that cannot be", "config-heads-do-not-divide",
        lambda model, folder: pl.TransformerConfig.from_pretrained("gpt2-small", n_head=7), C),
    Bad("config of a folder that is not there", "path-not-found",
        lambda model, folder: pl.TransformerConfig.from_pretrained(str(folder / "absent")), W),
    Bad("unknown attention", "unknown-attention", lambda model, folder: Model(model.config, attention="flash"), C),
    Bad("unknown numerics", "unknown-numerics", lambda model, folder: Model(model.config, numerics="fastest"), C),
]  # fmt: skip

IDS_AND_TEXT = [
    Bad("id above the vocabulary", "id-out-of-range", runs([[1, 211]]), I),
    Bad("negative id", "id-out-of-range", runs(torch.tensor([[1, -1]])), I),
    Bad("ids as floats", "ids-dtype", runs(torch.tensor([[1.0, 2.0]])), I),
    Bad("ids as float lists", "ids-dtype", runs([[1.0, 2.5]]), I),
    Bad("ids as bools", "ids-dtype", runs(torch.tensor([[True, False]])), I),
    Bad("ids as a bool list", "ids-dtype", runs([[True, False]]), I),
    Bad("ids as complex numbers", "ids-dtype", runs(torch.ones(1, 2, dtype=torch.complex64)), I),
    Bad("ids of three axes", "ids-shape", runs(torch.ones(1, 2, 3, dtype=torch.long)), I),
    Bad("ids of no axis", "ids-shape", runs(torch.tensor(3)), I),
    Bad("lists of three axes", "ids-shape", runs([[[1], [2]], [[3], [4]]]), I),
    Bad("an empty tensor", "empty-text", runs(torch.ones(0, dtype=torch.long)), I),
    Bad("a batch of no rows", "empty-text", runs(torch.ones(0, 4, dtype=torch.long)), I),
    Bad("rows of no columns", "empty-text", runs(torch.ones(2, 0, dtype=torch.long)), I),
    Bad("an empty list", "empty-text", runs([]), I),
    Bad("an empty row", "empty-text", runs([[1, 2], []]), I),
    Bad("ragged nonsense", "ids-dtype", runs([[1, [2]], [3]]), I),
    Bad("ids and text in one row", "ids-dtype", runs([[1, "a"]]), I),
    Bad("rows and numbers mixed", "ids-shape", runs([[1, 2], 3]), I),
    Bad("too long", "too-long", runs(torch.ones(1, 65, dtype=torch.long)), I),
    Bad("too long as lists", "too-long", runs([[1] * 65, [2]]), I),
    Bad("pads without a mask", "pad-without-mask", runs(torch.tensor([[210, 1], [2, 3]])), I),
    Bad("pads without a mask in a mapping", "pad-without-mask",
        runs({"input_ids": torch.tensor([[210, 1], [2, 3]])}), I),
    Bad("an empty text", "empty-text", runs(""), I),
    Bad("an empty text among others", "empty-text", runs(["ab", ""]), I),
    Bad("a text, and no tokenizer", "no-tokenizer",
        lambda model, folder: support.glass()("some text"), I),
    Bad("a batch of nothing", "missing-argument", lambda model, folder: pl.Batch(), pl.UnknownArgumentError),
    Bad("a batch of nine", "unknown-argument", lambda model, folder: pl.Batch(*range(9)), pl.UnknownArgumentError),
    Bad("a tokenizer of nothing", "missing-argument", lambda model, folder: pl.Tokenizer(), pl.UnknownArgumentError),
    Bad("settings of nothing", "missing-argument", lambda model, folder: pl.GenerationSettings(),
        pl.UnknownArgumentError),
    Bad("a batch of lists", "input-kind", lambda model, folder: pl.Batch([[1]], [[1]], [[0]]), I),
    Bad("nothing", "input-kind", runs(None), I),
    Bad("a number", "input-kind", runs(7), I),
    Bad("a mapping without ids", "input-kind", runs({"ids": IDS}), I),
    Bad("a set", "input-kind", runs({1, 2}), I),
    Bad("a list of nothing", "ids-dtype", runs([None]), I),
    Bad("an array of objects", "ids-dtype", runs(np.array([["a", None]], dtype=object)), I),
    Bad("an array of bytes", "ids-dtype", runs(np.array([b"a", b"b"])), I),
    Bad("a table of texts", "ids-dtype", runs(np.array([["a", "b"]])), I),
    Bad("a sparse tensor", "ids-not-dense", runs(IDS.to_sparse()), pl.ShapeError),
    Bad("a generator", "input-kind", runs(iter(["a"])), I),
    Bad("a mapping of nonsense", "ids-dtype", runs({"input_ids": ["a", "b"]}), I),
    Bad("a mapping with positions of its own", "another-computation", runs({"input_ids": IDS, "position_ids": IDS}), I),
    Bad("bytes", "input-kind", runs(b"ab"), I),
    Bad("a mask of another shape", "mask-shape", masked(torch.ones(2, 6)), pl.ShapeError),
    Bad("a mask of three axes", "mask-shape", masked(torch.ones(1, 2, 7)), pl.ShapeError),
    Bad("a mask of other values", "mask-values", masked(mask_of(2.0)), I),
    Bad("a mask of fractions", "mask-values", masked(mask_of(0.5)), I),
    Bad("a mask with NaN", "mask-values", masked(mask_of(float("nan"))), I),
    Bad("a mask of text", "mask-values", masked("ones"), I),
    Bad("a row that is all pads", "empty-text", masked(torch.tensor([[1] * 7, [0] * 7])), I),
    Bad("a mask with texts", "mask-without-ids", masked(torch.ones(2, 7), ["ab", "cd"]), I),
    Bad("a mask of another length than its row", "mask-shape", masked([[1, 1], [1]], [[1, 2], [3, 4]]), I),
    Bad("unknown padding side", "padding-side",
        lambda model, folder: model.tokenize([[1], [1, 2]], padding_side="both"), I),
    Bad("loss of one token", "nothing-to-predict", lambda model, folder: model.loss([[5]]), I),
    Bad("a batch of another model", "id-out-of-range",
        lambda model, folder: model(support.glass(vocab_size=999).tokenize([[998]])), I),
    Bad("a batch whose mask has another shape", "mask-shape",
        lambda model, folder: model(batch_of(mask=torch.ones(2, 6, dtype=torch.bool))), I),
    Bad("a batch with negative positions", "", lambda model, folder: model(batch_of(positions=POSITIONS - 1)), I),
    Bad("a batch whose positions have another shape", "",
        lambda model, folder: model(batch_of(positions=POSITIONS[:, :6])), I),
    Bad("a batch with positions that are no whole numbers", "positions",
        lambda model, folder: model(batch_of(positions=POSITIONS.float())), I),
    Bad("a batch of one axis", "mask-shape",
        lambda model, folder: model(pl.Batch(IDS[0], torch.ones(7, dtype=torch.bool), POSITIONS[0])), I),
    Bad("a batch of no rows, by hand", "empty-text",
        lambda model, folder: model(pl.Batch(IDS[:0], torch.ones(0, 7, dtype=torch.bool), POSITIONS[:0])), I),
    Bad("a batch with a row of pads alone", "empty-text",
        lambda model, folder: model(batch_of(ids=IDS.clone(), mask=mask_of(0, (0,)) > 0)), I),
    Bad("a token that is several", "not-one-token",
        lambda model, folder: model.tokenizer.token_id("ab"), I),
    Bad("a tokenizer that is not there", "path-not-found",
        lambda model, folder: pl.Tokenizer.from_file(folder / "tokenizer.json"), W),
]  # fmt: skip

NAMES = [
    Bad("unknown checkpoint", "unknown-checkpoint", captures(names="blocks.0.resid_past"), U),
    Bad("block that does not exist", "unknown-checkpoint", captures(names="blocks.3.resid_post"), U),
    Bad("pattern that matches nothing", "unknown-checkpoint", captures(names="blocks.*.ckpt_normalized"), U),
    Bad("one bad name among good ones", "unknown-checkpoint", captures(names=["ckpt_embed", "ckpt_embedding"]), U),
    Bad("a name that is a number", "unknown-checkpoint", captures(names=[3]), U),
    Bad("names that are a number", "unknown-checkpoint", captures(names=3), PellucidError),
    Bad("an empty name", "unknown-checkpoint", captures(names=""), U),
    Bad("an empty tuple", "unknown-checkpoint", captures(names=[()]), U),
    Bad("a tuple of four parts", "unknown-checkpoint", captures(names=[("pattern", 0, "attn", 5)]), U),
    Bad("an alias of another value", "alias-refused", captures(names="blocks.0.ln1.hook_scale"), U),
    Bad("an alias taken before dropout", "alias-refused", captures(names="transformer.h.0.mlp.c_proj"), U),
    Bad("a tuple of another value", "alias-refused", captures(names=[("scale", 0, "ln1")]), U),
    Bad("a name after the stop", "checkpoint-after-stop",
        captures(names="blocks.2.resid_pre", stop_at="blocks.0.resid_post"), U),
    Bad("an unknown stop", "unknown-checkpoint", captures(stop_at="blocks.9.resid_pre"), U),
    Bad("a pattern as a stop", "pattern-for-a-name", captures(stop_at="blocks.*.resid_pre"), U),
    Bad("a block that does not exist", "unknown-checkpoint", captures(names="blocks.9.resid_pre"), U),
    Bad("a block before the first", "unknown-checkpoint", captures(names=("resid_pre", -4)), U),
    Bad("position out of range", "index-out-of-range", captures(pos=7), I),
    Bad("positions out of range", "index-out-of-range", captures(pos=[0, -8]), I),
    Bad("an empty choice of positions", "index-out-of-range", captures(pos=[]), I),
    Bad("a position that is text", "index-out-of-range", captures(pos="first"), I),
    Bad("a position that is a fraction", "index-out-of-range", captures(pos=[0.5]), I),
    Bad("head out of range", "index-out-of-range", captures(heads=4), I),
    Bad("an empty choice of heads", "index-out-of-range", captures(heads=slice(4, 9)), I),
    Bad("gradients of a part", "grads-of-a-part", captures(grads=True, pos=0), I),
    Bad("unknown parameter", "unknown-parameter", lambda model, folder: model.parameter("blocks.0.attn.WQ"), U),
    Bad("unknown gradient", "unknown-parameter", lambda model, folder: model.grad("transformer.wte.weight"), U),
    Bad("a module as a parameter", "unknown-parameter", lambda model, folder: model.parameter("blocks.0.attn"), U),
    Bad("captured name that is not there", "not-captured",
        lambda model, folder: model.run_with_ckpts(IDS, names="ckpt_embed")[1]["ckpt_pos_embed"], U),
    Bad("a pattern for a name", "pattern-for-a-name",
        lambda model, folder: model.run_with_ckpts(IDS)[1]["blocks.*.resid_post"], U),
    Bad("stack of what was not captured", "not-captured",
        lambda model, folder: model.run_with_ckpts(IDS, names="ckpt_embed")[1].stack("resid_post"), U),
    Bad("estimate of an unknown name", "unknown-checkpoint",
        lambda model, folder: pl.estimate(model, IDS, "nowhere"), U),
]  # fmt: skip

EDITS = [
    Bad("value of another width", "edit-misfit", edits(EDIT.replace("blocks.0.resid_pre", torch.ones(47))), E),
    Bad("added value of another shape", "edit-misfit", edits(EDIT.add("blocks.0.resid_pre", torch.ones(2, 8, 48))), E),
    Bad("factor of another shape", "edit-misfit", edits(EDIT.scale("blocks.0.resid_pre", torch.ones(5))), E),
    Bad("value of the whole for a part", "edit-misfit",
        edits(EDIT.replace("ckpt_embed", torch.ones(2, 7, 48), pos=[1, 2])), E),
    Bad("function that changes the dtype", "edit-misfit",
        edits(EDIT.apply("ckpt_embed", lambda part: part.double())), E),
    Bad("function that gives nothing", "edit-misfit", edits(EDIT.apply("ckpt_embed", lambda part: None)), E),
    Bad("function that changes the shape", "edit-misfit", edits(EDIT.apply("ckpt_embed", lambda part: part[0, :2])), E),
    Bad("value that is text", "edit-misfit", edits(EDIT.replace("ckpt_embed", "zero")), E),
    Bad("an edit that is not one", "edit-kind", edits(lambda name, value: value), E),
    Bad("a list as an edit", "edit-kind", edits(["zero", "ckpt_embed"]), E),
    Bad("edits that are not a list", "edit-kind", captures(edits=3), E),
    Bad("edit of an unknown name", "unknown-checkpoint", edits(EDIT.zero("blocks.0.atn.ckpt_z")), U),
    Bad("edit of an alias of another value", "alias-refused", edits(EDIT.zero("blocks.0.ln1.hook_scale")), U),
    Bad("edit after the stop", "edit-never-fired", edits(EDIT.zero("ln_final.ckpt_scaled"), stop_at="ckpt_embed"), E),
    Bad("heads of the stream", "no-such-axis", edits(EDIT.zero("blocks.0.resid_pre", heads=1)), I),
    Bad("neurons of a pattern", "no-such-axis", edits(EDIT.zero("blocks.0.attn.ckpt_pattern", neurons=1)), I),
    Bad("edit at a position out of range", "index-out-of-range", edits(EDIT.zero("ckpt_embed", pos=7)), I),
    Bad("edit at a head out of range", "index-out-of-range", edits(EDIT.zero("blocks.0.attn.ckpt_z", heads=[4])), I),
    Bad("mean of a pattern", "edit-mean-of-pattern", edits(EDIT.mean_ablate("blocks.0.attn.ckpt_pattern")), E),
    Bad("patch from a run without the value", "not-captured",
        lambda model, folder: model.run_with_ckpts(
            IDS, edits=[EDIT.patch("ckpt_embed", model.run_with_ckpts(IDS, names="ckpt_pos_embed")[1])]), U),
    Bad("patch from a longer run", "patch-of-another-length",
        lambda model, folder: model.run_with_ckpts(
            IDS, edits=[EDIT.patch("ckpt_embed", model.run_with_ckpts(support.some_ids(2, 9))[1])]), E),
]  # fmt: skip

FILES = [
    Bad("a path that is not there", "path-not-found", loads("model.safetensors"), W),
    Bad("a folder without a model", "weights-not-found", loads(None), W),
    Bad("an empty file", "", load_with_file(b""), W),
    Bad("a truncated file", "", load_with_file(b"\x40\x00\x00\x00\x00\x00\x00\x00{"), W),
    Bad("a file of noise", "", load_with_file(b"\xff" * 64), W),
    Bad("a pickle that would run code", "", load_with_file(b"cos\nsystem\n(S'touch ran'\ntR.", "pytorch_model.bin"), W),
    Bad("unknown dtype", "dtype-unknown", load_with_file(b"\xff" * 64, dtype="float7"), PellucidError),
    Bad("checkpoints of a path that is not there", "path-not-found",
        lambda model, folder: pl.ActivationCkpts.load(folder / "run.safetensors"), W),
    Bad("checkpoints of noise", "", unreadable_ckpts, PellucidError),
    Bad("another object for from_hf", "hf-wrong-class", lambda model, folder: pl.from_hf(torch.nn.Linear(2, 2)), W),
    Bad("another object for to_hf", "hf-wrong-class", lambda model, folder: pl.to_hf(torch.nn.Linear(2, 2)), W),
]  # fmt: skip

ALL = CONFIGS + IDS_AND_TEXT + NAMES + EDITS + FILES


@pytest.fixture(scope="module")
def model() -> Model:
    import tokenizers

    model = support.glass(pad_token_id=210)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    model.tokenizer = pl.Tokenizer(backend)
    return model


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.what)
def test_bad_input(bad: Bad, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.no_grad():
        before = model(IDS)
    weights = {name: p._version for name, p in model.named_parameters()}
    with pytest.raises(bad.error) as caught:
        bad.act(model, tmp_path)
    error = caught.value
    assert isinstance(error, PellucidError)
    assert error.code
    assert error.code == bad.code or not bad.code
    assert error.remedy.strip(), "no remedy"
    assert error.remedy.rstrip().endswith((".", "?", "'", ")")) or "pip install" in error.remedy, error.remedy
    assert error.message.strip()
    assert error.remedy in str(error)
    assert error.code in str(error)
    assert list(tmp_path.iterdir()) == [], "something was left on disk"
    with torch.no_grad():
        assert torch.equal(model(IDS), before), "the model is not as it was"
    assert weights == {name: p._version for name, p in model.named_parameters()}
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_names_of_cases_are_unique() -> None:
    names = [bad.what for bad in ALL]
    assert len(set(names)) == len(names) >= 60


def test_errors_are_one_tree_and_survive_pickling() -> None:
    import pickle

    for error in vars(pl).values():
        if isinstance(error, type) and issubclass(error, PellucidError):
            made = error("where it was", code="some-code", remedy="Do this.")
            again = pickle.loads(pickle.dumps(made))
            assert type(again) is error
            assert (again.message, again.code, again.remedy) == ("where it was", "some-code", "Do this.")
            assert str(again) == str(made) == "where it was\n  remedy: Do this.  [some-code]"
    assert issubclass(pl.UnknownNameError, KeyError)
    assert issubclass(pl.NotFoundError, FileNotFoundError)
    assert issubclass(pl.ShapeError, pl.InputError)
    assert issubclass(pl.MissingExtraError, ImportError)


def test_a_suggestion_names_what_was_meant(model: Model) -> None:
    with pytest.raises(pl.UnknownNameError, match=r"blocks\.1\.attn\.ckpt_z"):
        model.run_with_ckpts(IDS, names="blocks.1.attn.ckpt_zz")
    with pytest.raises(pl.UnknownNameError, match=r"blocks\.0\.attn\.W_Q"):
        model.parameter("blocks.0.attn.WQ")
    with pytest.raises(pl.ConfigError, match="n_embd"):
        pl.TransformerConfig.from_pretrained("gpt2-small", n_embed=3)
