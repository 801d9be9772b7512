"""Remedies of configurations, tokenizers, reports and alignments, followed."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pellucid as pl
import samples
import support
from following import Case, follow, params
from offloading import brought_back, moved_by_accelerate
from pellucid.open import BUNDLED

Here = SimpleNamespace
SIZES = support.SIZES
CONFIG = pl.TransformerConfig
FIELDS = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))


def _without_numbers(config: Any) -> pl.CkptedTransformer:
    with torch.device("meta"):
        return pl.CkptedTransformer(config)


def _config(**fields: Any) -> pl.TransformerConfig:
    return CONFIG(**{**SIZES, **fields})


def _file(here: Here, name: str, text: str) -> Path:
    (here.folder / name).write_text(text, encoding="utf-8")
    return here.folder / name


def _folder(here: Here, name: str, config: str) -> pl.CkptedTransformer:
    """Open the bundled weights with this text as their configuration."""
    folder = here.folder / name
    folder.mkdir(exist_ok=True)
    for file in ("model.safetensors", "tokenizer.json"):
        if not (folder / file).exists():
            (folder / file).symlink_to(BUNDLED / file)
    (folder / "config.json").write_text(config, encoding="utf-8")
    return pl.load(folder)


class Program(nn.Module):
    """Somebody's program around a GPT-2, with one more module in it.

    Args:
        lazy: The module gets its parameters at the first run.
        run: That run has been.
    """

    def __init__(self, *, lazy: bool = False, run: bool = False) -> None:
        super().__init__()
        self.inner = support.reference()
        self.more = nn.LazyLinear(3) if lazy else nn.Identity()
        if run:
            self(support.some_ids(1, 3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.inner(ids).logits
        return logits + 0 * self.more(logits).sum()


def _around(inside: nn.Module) -> nn.Module:
    module = nn.Module()
    module.forward = inside.forward
    module.inside = inside
    return module


def _replaced() -> pl.CkptedTransformer:
    model = support.glass()
    model.blocks[0].mlp.forward = lambda x, tap=None: x
    return model


def _restored() -> pl.CkptedTransformer:
    model = _replaced()
    del model.blocks[0].mlp.forward
    return model


def _nan(dtype: torch.dtype = torch.float32) -> pl.CkptedTransformer:
    model = support.glass(dtype=dtype)
    with torch.no_grad():
        model.blocks[1].mlp.b_out[0] = torch.nan
    return model


def _mended() -> pl.CkptedTransformer:
    model = _nan()
    with torch.no_grad():
        model.blocks[1].mlp.b_out[0] = 0
    return model


def _meta() -> pl.CkptedTransformer:
    with torch.device("meta"):
        return pl.CkptedTransformer(_config())


def _away(home: str) -> Any:
    return moved_by_accelerate(copy.deepcopy(support.reference()), home)


def _filled(weights: dict[str, torch.Tensor]) -> pl.CkptedTransformer:
    model = _meta()
    model.to_empty(device="cpu")
    model.load_state_dict(weights)
    return model.eval()


def _saved_and_read(here: Here, device: str) -> dict[str, torch.Tensor]:
    torch.save(here.model.state_dict(), here.folder / "weights.pt")
    return torch.load(here.folder / "weights.pt", map_location=device)


def _characters(here: Here) -> pl.Tokenizer:
    (here.folder / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0, "b": 1}}))
    found = pl.Tokenizer.from_characters(here.folder / "meta.pkl")
    assert found is not None
    return found


CLOSED = {"model.a": torch.ones(3), "model.b": torch.ones(4)}

REMEDIES: dict[str, list[Case]] = {
    "config-missing": [
        Case(lambda h: pl.CkptedTransformer(None), "TransformerConfig(vocab_size=50257",
             lambda h: CONFIG(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)),
        Case(lambda h: pl.CkptedTransformer(None), "pl.load() opens a trained model", lambda h: pl.load()),
    ],
    "config-wrong-type": [
        *(
            Case(lambda h, hf=hf: pl.CkptedTransformer(hf), f"pl.{cls.__name__}.from_dict(config.to_dict())",
                 lambda h, hf=hf, cls=cls: pl.CkptedTransformer(cls.from_dict(hf.to_dict())))
            for cls, hf in samples.foreign_configs()
        ),
        Case(lambda h: CONFIG.from_dict(support.reference().config), "config.to_dict()",
             lambda h: CONFIG.from_dict(support.reference().config.to_dict())),
        Case(lambda h: _config(scale_attn_weights="yes"), "scale_attn_weights as ",
             lambda h: _config(scale_attn_weights=True)),
        *(
            Case(lambda h, given=given: CONFIG.from_pretrained(h.written, ignore_config=given),
                 "ignore_config=['auto_map']",
                 lambda h: CONFIG.from_dict({**FIELDS, "auto_map": {}}, ignore=["auto_map"]))
            for given in (3, torch.tensor(True), {"auto_map": 1})
        ),
        Case(lambda h: pl.load(h.written, hub="main"), "hub=pl.HubOptions(revision='main')",
             lambda h: pl.load(h.written, hub=pl.HubOptions(revision="main"))),
        Case(lambda h: pl.load(config=[1]), "config=pl.TransformerConfig(...)",
             lambda h: pl.load(config=CONFIG.from_dict(FIELDS))),
    ],
    "config-out-of-range": [
        Case(lambda h: _config(n_head=0), "a n_head of 1 or more", lambda h: _config(n_head=1)),
        Case(lambda h: _config(bos_token_id=2**70), "or null", lambda h: _config(bos_token_id=None)),
        Case(lambda h: _config(bos_token_id=2**70), "below vocab_size", lambda h: _config(bos_token_id=210)),
        Case(lambda h: _config(attn_pdrop=2), "within that range", lambda h: _config(attn_pdrop=1)),
        Case(lambda h: pl.CkptedTransformer(_config(vocab_size=10**15)), "on torch's meta device",
             lambda h: _without_numbers(_config(vocab_size=10**15))),
    ],
    "config-unknown-field": [
        Case(lambda h: CONFIG.from_pretrained(h.written, n_layers=2), "'n_layer'",
             lambda h: CONFIG.from_pretrained(h.written, n_layer=2)),
        Case(lambda h: CONFIG.from_pretrained(h.written, colour="red"), "Leave out",
             lambda h: CONFIG.from_pretrained(h.written)),
    ],
    "config-heads-do-not-divide": [
        Case(lambda h: _config(n_head=5), "divides n_embd", lambda h: _config(n_head=6))
    ],
    "config-activation": [
        Case(lambda h: _config(activation_function="gelu_nw"), "'gelu_new'",
             lambda h: _config(activation_function="gelu_new")),
        Case(lambda h: _config(activation_function="sine"), "Give one of",
             lambda h: _config(activation_function="relu")),
    ],
    "config-missing-field": [
        Case(lambda h: CONFIG.from_dict({"n_layer": 2}), "Add the sizes", lambda h: CONFIG.from_dict(SIZES))
    ],
    "config-model-type": [
        Case(lambda h: pl.load(config={**FIELDS, "model_type": "gpt9"}), "ignore_config=['model_type']",
             lambda h: pl.load(config={**FIELDS, "model_type": "gpt9"}, ignore_config=["model_type"]))
    ],
    "config-not-implemented": [
        Case(lambda h: pl.load(config={**FIELDS, "alibi": True}), "ignore_config=['alibi']",
             lambda h: pl.load(config={**FIELDS, "alibi": True}, ignore_config=["alibi"]))
    ],
    "config-not-json": [
        Case(lambda h: _folder(h, "a", "{'n_embd': 12}"), "write the file again",
             lambda h: _folder(h, "a", json.dumps(FIELDS))),
        Case(lambda h: _folder(h, "a", "[]"), "that save_pretrained wrote",
             lambda h: _folder(h, "a", json.dumps(FIELDS))),
    ],
    "generation-not-json": [
        Case(lambda h: pl.GenerationSettings.from_folder(_file(h, "generation_config.json", "{").parent),
             "write the file again",
             lambda h: pl.GenerationSettings.from_folder(_file(h, "generation_config.json", "{}").parent))
    ],
    "unknown-attention": [
        Case(lambda h: pl.CkptedTransformer(_config(), attention="flash"), "Give one of these",
             lambda h: pl.CkptedTransformer(_config(), attention="eager"))
    ],
    "unknown-numerics": [
        Case(lambda h: pl.CkptedTransformer(_config(), numerics="quick"), "Give one of these",
             lambda h: pl.CkptedTransformer(_config(), numerics="exact"))
    ],
    # tokenizers
    "text-not-encoded": [
        Case(lambda h: _characters(h).encode("a~"), "Leave these characters out", lambda h: _characters(h).encode("a"))
    ],
    "text-kind": [
        Case(lambda h: h.told.tokenizer.encode(b"a cat"), "Pass a str", lambda h: h.told.tokenizer.encode("a cat")),
        Case(lambda h: h.told.tokenizer.encode(b"caf\xe9".decode("utf-8", "surrogateescape")), "decoded first",
             lambda h: h.told.tokenizer.encode(
                 b"caf\xe9".decode("utf-8", "surrogateescape").encode("utf-8", "surrogateescape").decode("latin1"))),
    ],
    "not-one-token": [
        Case(lambda h: h.told.tokenizer.token_id(" upon a"), "Give one token",
             lambda h: h.told.tokenizer.token_id(" upon"))
    ],
    "return-tensors": [
        Case(lambda h: h.told.tokenizer("a cat", return_tensors="tf"), "'pt' for a tensor",
             lambda h: h.told.tokenizer("a cat", return_tensors="pt"))
    ],
    "not-a-rectangle": [
        Case(lambda h: h.told.tokenizer(["a", "a cat sat"], return_tensors="pt"), "model.tokenize(texts)",
             lambda h: h.told.tokenize(["a", "a cat sat"]))
    ],
    "tokenizer-unreadable": [
        Case(lambda h: pl.Tokenizer.from_file(_file(h, "tokenizer.json", "{}")), "of the tokenizers library",
             lambda h: pl.Tokenizer.from_file(BUNDLED / "tokenizer.json"))
    ],
    # runs
    "checkpoint-never-fired": [
        Case(lambda h: _replaced().run_with_ckpts([[1, 2]], names="blocks.0.mlp.ckpt_post"), "Remove the hook",
             lambda h: _restored().run_with_ckpts([[1, 2]], names="blocks.0.mlp.ckpt_post")),
        Case(lambda h: _replaced().run_with_ckpts([[1, 2]], names="blocks.0.mlp.ckpt_post"), "leave the name out",
             lambda h: _replaced().run_with_ckpts([[1, 2]], names="embed")),
    ],
    "nan-logits": [
        Case(lambda h: _nan().generate([1, 2], max_new_tokens=2), "Look at the weights",
             lambda h: _mended().generate([1, 2], max_new_tokens=2))
    ],
    # comparisons
    "compare-kind": [
        Case(lambda h: pl.compare(3, h.model), "or models or state dicts", lambda h: pl.compare(h.model, h.model)),
        Case(lambda h: pl.compare(h.model, h.model.forward), "module.forward = function",
             lambda h: pl.compare(h.model, _around(h.model))),
        Case(lambda h: pl.compare(h.model, Program), "an instance of a class",
             lambda h: pl.compare(h.model, Program())),
        Case(lambda h: pl.compare(torch.ones(2), h.model), "tensors on both sides",
             lambda h: pl.compare(torch.ones(2), torch.ones(2))),
    ],
    "compare-shapes": [
        Case(lambda h: pl.compare(torch.ones(2, 3), torch.ones(3, 2)), "after .T",
             lambda h: pl.compare(torch.ones(2, 3), torch.ones(3, 2).T))
    ],
    "compare-no-values": [
        Case(lambda h: pl.compare(h.model, Program(lazy=True)), "Run the model once",
             lambda h: pl.compare(h.model, Program(lazy=True, run=True))),
        Case(lambda h: pl.compare(h.model, _saved_and_read(h, "meta")), "map_location='cpu'",
             lambda h: pl.compare(h.model, _saved_and_read(h, "cpu"))),
        Case(lambda h: pl.compare(h.model, _away("cpu")), "accelerate.hooks.remove_hook_from_module",
             lambda h: pl.compare(h.model, brought_back(_away("cpu")))),
        Case(lambda h: pl.compare(h.model, _away("meta")), "open the model again without device_map",
             lambda h: pl.compare(h.model, support.reference())),
        Case(lambda h: pl.compare(h.model, _meta()),
             "model.to_empty(device='cpu'), then model.load_state_dict(weights)",
             lambda h: pl.compare(h.model, _filled(h.model.state_dict()))),
    ],
    "compare-unknown-both": [
        Case(lambda h: pl.compare(CLOSED, {"c": torch.ones(3)}), "the model of one of them",
             lambda h: pl.compare(h.model, h.model.state_dict())),
        Case(lambda h: pl.compare(nn.Linear(2, 2), nn.Linear(2, 2)), "a CkptedTransformer",
             lambda h: pl.compare(h.model, support.glass())),
    ],
    "hf-unreadable": [
        Case(lambda h: pl.compare(h.model, f"hf:{h.folder}"), "config.json and weights",
             lambda h: pl.compare(pl.load(h.written), f"hf:{h.written}"))
    ],
    "alignment-unreadable": [
        Case(lambda h: pl.Alignment.load(_file(h, "x.json", "{}")), "Alignment.save",
             lambda h: (h.report.alignment.save(h.folder / "y.json"), pl.Alignment.load(h.folder / "y.json")))
    ],
    "alignment-units": [
        Case(lambda h: h.report.alignment.check(support.glass(n_layer=2), h.model), "the configuration and the class",
             lambda h: h.report.alignment.check(h.model, pl.to_hf(h.model)))
    ],
    "no-page": [
        Case(lambda h: pl.save_html(pl.compare(torch.ones(2), torch.ones(2)), h.folder / "page.html"),
             "pl.compare returns for two models",
             lambda h: pl.save_html(pl.compare(h.model, support.glass()), h.folder / "page.html"))
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("remedies")
    model = support.glass()
    model.save_pretrained(folder / "written")
    return Here(
        folder=folder,
        model=model,
        told=pl.load(),
        written=folder / "written",
        report=pl.compare(model, pl.to_hf(model)),
    )


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)
