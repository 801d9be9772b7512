"""A remedy is followed before it is printed: each error is provoked, what it says is done, and the error is gone.

`REMEDIES` has the cases of the model, its runs and its caches; other files follow those of other parts. A code of the
source that no test follows, and that `NOT_FOLLOWED` does not excuse, fails a test.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from following import Act, Case, codes_followed, codes_met, codes_of_the_source, follow, params
from pellucid.check import require_whole

NO_CODES = {
    "cache-control", "content-length", "content-security-policy", "transfer-encoding", "cross-origin-opener-policy",
    "cross-origin-resource-policy", "e-0", "gpt2-large", "gpt2-medium", "gpt2-small", "gpt2-xl", "greater-than",
    "hac-panel", "hooked-transformer", "knock-outs", "latin-1", "log-probabilities", "nanogpt-without-bias",
    "no-referrer", "no-store", "p-values", "pellucid-examples", "pellucid-readings", "pellucid-server",
    "pellucid-trace", "pellucid-trace-2", "referrer-policy", "same-origin", "sans-serif", "scikit-learn", "top-k",
    "top-p", "utf-8", "x-content-type-options", "x-frame-options", "x-pellucid-session", "x-pellucid-token",
}  # fmt: skip
"""What looks like a code in the source, and is none."""

NOT_FOLLOWED = {
    "mask-while-captured": "needs a GPU; tests/text/test_batch.py provokes it",
    "missing-extra": "says what to install; tests/test_optional_packages.py provokes it",
    "stdout-not-writable": "needs another terminal, pipe or disk; tests/cli/test_cli_process.py provokes it",
    "unexpected": "asks for a report of a fault; tests/cli/test_cli.py provokes it",
    "reload-overwritten": "no known class writes and reads a tied tensor so; the remedy is tied-by-config-only's",
    "broken-extra": "says what to install again; tests/test_optional_packages.py provokes it",
    "kernel-tables": "changes the library's own source; tests/test_adding_a_checkpoint.py provokes it",
}
"""Codes whose remedy is followed by no test, with the reason."""

Here = SimpleNamespace


PADDED = torch.tensor([[9, 9, 1], [2, 3, 4]])
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
NESTED = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged)
with warnings.catch_warnings(action="ignore"):  # torch will not make such tensors for much longer
    QUANTIZED = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 1.0, 0, torch.qint8)
MASKED = np.ma.array([0, 1, 2], mask=[True, False, False])
EDIT = pl.Edit


def _run(here: Here, **more: Any) -> Any:
    return here.model.run_with_ckpts(IDS, **more)[1]


def _of_scores(ids: torch.Tensor) -> torch.Tensor:
    """A mask as transformers makes it of ids whose pads are 9: [B, 1, Q, K], true at what each query sees."""
    columns = torch.arange(ids.size(1))
    return (ids != 9)[:, None, None, :] & (columns <= columns[:, None])


def _generate(here: Here, **more: Any) -> Any:
    return here.model.generate(IDS, **{"max_new_tokens": 2, **more})


def _with_file(fields: dict[str, Any]) -> pl.CkptedTransformer:
    model = support.glass()
    model.generation = pl.GenerationSettings(fields)
    return model


def _without(name: str, fields: dict[str, Any]) -> pl.CkptedTransformer:
    model = _with_file(fields)
    model.generation = model.generation.without(name)
    return model


def _cached(here: Here, columns: int, capacity: int = 4) -> pl.KeyValueCache:
    cache = pl.KeyValueCache(here.model.config, capacity=capacity)
    with torch.no_grad():
        here.model([[1] * columns], cache=cache)
    return cache


def _apply(what: str, edit: Act) -> Act:
    return lambda here: _run(here, names=what, edits=edit(here))


REMEDIES: dict[str, list[Case]] = {
    "not-a-whole-number": [
        Case(
            lambda h: require_whole("f: n", 5, at_most=4),
            "a whole number from 0 to 4",
            lambda h: require_whole("f: n", 4, at_most=4),
        )
    ],
    # ids and masks
    "pad-without-mask": [
        Case(lambda h: h.model(PADDED), "mask=", lambda h: h.model(PADDED, mask=PADDED != 9)),
        Case(lambda h: h.model(PADDED), "lists of unequal length", lambda h: h.model([[1], [2, 3, 4]])),
        Case(lambda h: h.model(PADDED), "mask=torch.ones(2, 3)", lambda h: h.model(PADDED, mask=torch.ones(2, 3))),
        Case(lambda h: h.model(h.batch.ids), "Pass the batch itself", lambda h: h.model(h.batch)),
    ],
    "mask-without-ids": [
        Case(lambda h: h.told.loss("a cat", mask=[[1, 1]]), "Leave the mask out", lambda h: h.told.loss("a cat"))
    ],
    "mask-shape": [
        Case(lambda h: h.model(IDS, mask=[[1, 1]]), "one 0 or 1 for each id", lambda h: h.model(IDS, mask=IDS > 0)),
        Case(
            lambda h: h.model(PADDED, mask=_of_scores(PADDED)),
            "mask[:, 0, -1]",
            lambda h: h.model(PADDED, mask=_of_scores(PADDED)[:, 0, -1]),
        ),
        Case(
            lambda h: h.model(pl.Batch(IDS, torch.ones(2, 3), IDS)),
            "model.tokenize",
            lambda h: h.model(h.model.tokenize(IDS)),
        ),
    ],
    "mask-values": [
        Case(
            lambda h: h.model(IDS, mask=IDS), "1 at real tokens, else 0", lambda h: h.model(IDS, mask=(IDS > 0).long())
        ),
        Case(
            lambda h: h.model(PADDED, mask=(PADDED == 9) * -1e9),
            "mask == 0",
            lambda h: h.model(PADDED, mask=(PADDED == 9) * -1e9 == 0),
        ),
    ],
    "padding-side": [
        Case(
            lambda h: h.model.tokenize(IDS, padding_side="up"),
            "padding_side='left'",
            lambda h: h.model.tokenize(IDS, padding_side="left"),
        )
    ],
    "ids-shape": [
        Case(lambda h: h.model([[[1], [2]], [[3], [4]]]), "list of rows", lambda h: h.model([[1, 2], [3, 4]]))
    ],
    "id-out-of-range": [
        Case(lambda h: h.model([[999]]), "this model's own tokenizer", lambda h: h.told("a cat")),
        Case(lambda h: _generate(h, end_ids=[999]), "end_ids=()", lambda h: _generate(h, end_ids=())),
        Case(
            lambda h: _generate(h, sampler=pl.Sampler(suppress_tokens=[999])),
            "this model's vocabulary",
            lambda h: _generate(h, sampler=pl.Sampler(suppress_tokens=[99])),
        ),
        Case(
            lambda h: _generate(h, stop=[[2, 3]]),
            "one by one, as [2, 3], and several in a row as their text",
            lambda h: _generate(h, stop=[2, 3]),
        ),
    ],
    "positions": [
        Case(
            lambda h: h.model(pl.Batch(IDS, IDS > 0, IDS - 9)),
            "model.tokenize",
            lambda h: h.model(h.model.tokenize(IDS)),
        )
    ],
    "too-long": [
        Case(lambda h: h.model([[1] * 65]), "split the text", lambda h: [h.model([[1] * n]) for n in (33, 32)]),
        Case(
            lambda h: _generate(h, max_new_tokens=62),
            "at most 61 new tokens",
            lambda h: _generate(h, max_new_tokens=61),
        ),
        Case(
            lambda h: _generate(h, max_new_tokens=62),
            "overflow='slide'",
            lambda h: _generate(h, max_new_tokens=62, overflow="slide"),
        ),
        Case(
            lambda h: h.model([[1, 2]], cache=_cached(h, 63, 90)),
            "fewer tokens",
            lambda h: h.model([[1]], cache=_cached(h, 63, 90)),
        ),
    ],
    "no-tokenizer": [
        Case(lambda h: h.model("a cat"), "Pass ids", lambda h: h.model([[1, 2]])),
        Case(lambda h: _generate(h, stop="."), "Give stop ids", lambda h: _generate(h, stop=5)),
    ],
    "empty-text": [
        Case(lambda h: h.told(""), "beginning-of-text id", lambda h: h.told([h.told.config.bos_token_id])),
    ],
    "input-kind": [
        Case(lambda h: pl.Batch([[1]], [[1]], [[0]]), "model.tokenize", lambda h: h.model.tokenize([[1]])),
        Case(lambda h: h.model(None), "lists of ids", lambda h: h.model([1, 2])),
        Case(lambda h: h.model({1, 2}), "list(given)", lambda h: h.model(list({1, 2}))),
        Case(lambda h: h.told(iter(["a cat"])), "list(given)", lambda h: h.told(list(iter(["a cat"])))),
        Case(lambda h: h.told(b"a cat"), "bytes(given).decode()", lambda h: h.told(b"a cat".decode())),
        Case(lambda h: h.told(bytearray([1, 2])), "list(given)", lambda h: h.told(list(bytearray([1, 2])))),
        Case(lambda h: h.model(7), "[given]", lambda h: h.model([7])),
        Case(
            lambda h: h.model(h.model.run_with_ckpts([1, 2])[1]),
            ".batch",
            lambda h: h.model(h.model.run_with_ckpts([1, 2])[1].batch),
        ),
        Case(
            lambda h: h.model({"input_ids": [1], "x": 1}),
            '{"input_ids": ..., "attention_mask": ...}',
            lambda h: h.model({"input_ids": [1], "attention_mask": [1]}),
        ),
    ],
    "ids-dtype": [
        Case(lambda h: h.model(IDS.float()), "ids.long()", lambda h: h.model(IDS.float().long())),
        Case(lambda h: h.told({"input_ids": ["a cat"]}), "by themselves", lambda h: h.told(["a cat"])),
        Case(lambda h: h.model([None]), "whole numbers", lambda h: h.model([1])),
        Case(lambda h: h.model([1.0]), "[int(i) for i in ids]", lambda h: h.model([int(i) for i in [1.0]])),
        Case(
            lambda h: h.model([[1.0], [2.0]]),
            "[[int(i) for i in row] for row in ids]",
            lambda h: h.model([[int(i) for i in row] for row in [[1.0], [2.0]]]),
        ),
        Case(lambda h: h.model(np.ones(2)), "ids.astype(int)", lambda h: h.model(np.ones(2).astype(int))),
        Case(
            lambda h: h.model(MASKED),
            "ids.filled(0) as the ids and mask=~np.ma.getmaskarray(ids)",
            lambda h: h.model(MASKED.filled(0), mask=~np.ma.getmaskarray(MASKED)),
        ),
    ],
    "ids-not-dense": [
        Case(lambda h: h.model(IDS.to_sparse()), "ids.to_dense()", lambda h: h.model(IDS.to_sparse().to_dense())),
        Case(lambda h: h.model([IDS[0].to_sparse()]), "ids.to_dense()", lambda h: h.model([IDS[0]])),
        Case(lambda h: h.model(NESTED), "list(ids.unbind())", lambda h: h.model(list(NESTED.unbind()))),
        Case(lambda h: h.model(QUANTIZED), "ids.int_repr()", lambda h: h.model(QUANTIZED.int_repr())),
        Case(lambda h: h.model(IDS.to("meta")), "on the model's device", lambda h: h.model(IDS.to(h.model.device))),
    ],
    "another-computation": [
        Case(
            lambda h: h.model({"input_ids": IDS, "token_type_ids": IDS * 0, "attention_mask": IDS > 0}),
            "alone",
            lambda h: h.model({"input_ids": IDS, "attention_mask": IDS > 0}),
        )
    ],
    "not-a-path": [
        Case(lambda h: h.model.save_pretrained(b"m"), "Give a str", lambda h: h.model.save_pretrained(h.folder / "m")),
        Case(lambda h: h.told.tokenizer.save(""), "not empty", lambda h: h.told.tokenizer.save(h.folder / "t")),
    ],
    "tap-kind": [
        Case(
            lambda h: h.model(PADDED, PADDED != 9), "model(ids, mask=mask)", lambda h: h.model(PADDED, mask=PADDED != 9)
        ),
        Case(
            lambda h: h.model(IDS, lambda name, value: value),
            "pl.Edit.apply(name, function)",
            lambda h: h.model.run(IDS, edits=pl.Edit.apply("blocks.0.resid_post", lambda value: value)),
        ),
    ],
    "nothing-to-predict": [Case(lambda h: h.model.loss([[1]]), "two tokens", lambda h: h.model.loss([[1, 2]]))],
    # names
    "pattern-for-a-name": [
        Case(
            lambda h: _run(h)["pattern"],
            '"blocks.0.attn.ckpt_pattern"',
            lambda h: _run(h)["blocks.0.attn.ckpt_pattern"],
        ),
        Case(
            lambda h: _run(h)["pattern"],
            "ckpts.stack('attn.ckpt_pattern')",
            lambda h: _run(h).stack("attn.ckpt_pattern"),
        ),
        Case(lambda h: _run(h)["**.ckpt_z"], "in names=", lambda h: _run(h, names="**.ckpt_z")),
    ],
    "several-kinds": [Case(lambda h: _run(h).stack("attn.*"), "'resid_post'", lambda h: _run(h).stack("resid_post"))],
    "alias-refused": [
        Case(
            lambda h: _run(h, names="blocks.0.ln1.hook_scale"),
            "that the reason names",
            lambda h: _run(h, names="blocks.0.ln1.ckpt_scaled"),
        )
    ],
    "unknown-checkpoint": [
        Case(
            lambda h: _run(h, names="blocks.9.resid_pre"), "from 0 to 2", lambda h: _run(h, names="blocks.2.resid_pre")
        ),
        Case(
            lambda h: _run(h, names="blocks.0.resid_pro"),
            "'blocks.0.resid_pre'",
            lambda h: _run(h, names="blocks.0.resid_pre"),
        ),
        Case(
            lambda h: _run(h, names="normalized"), "'**.ckpt_normalized'", lambda h: _run(h, names="**.ckpt_normalized")
        ),
    ],
    "unknown-attribute": [Case(lambda h: h.model.cfg, "model.config", lambda h: h.model.config)],
    "unknown-argument": [
        Case(
            lambda h: h.model.generate([[1]], 2),
            "by name: mask=, max_new_tokens=",
            lambda h: h.model.generate([[1]], max_new_tokens=2),
        ),
        Case(
            lambda h: h.model(PADDED, attention_mask=PADDED != 9), "mask=", lambda h: h.model(PADDED, mask=PADDED != 9)
        ),
    ],
    "unknown-parameter": [
        Case(lambda h: h.model.parameter("embed.W_F"), "'embed.W_E'", lambda h: h.model.parameter("embed.W_E"))
    ],
    "checkpoint-after-stop": [
        Case(
            lambda h: _run(h, names="blocks.2.resid_pre", stop_at="embed"),
            "a later stop_at",
            lambda h: _run(h, names="blocks.2.resid_pre", stop_at="blocks.2.resid_pre"),
        )
    ],
    "checkpoint-before-start": [
        Case(
            lambda h: _run(h, names="blocks.0.resid_post", start_at=("blocks.1.resid_pre", _run(h)["resid_pre", 1])),
            "an earlier start_at",
            lambda h: _run(h, names="blocks.0.resid_post", start_at=("blocks.0.resid_pre", _run(h)["resid_pre", 0])),
        )
    ],
    "start-at": [
        Case(
            lambda h: _run(h, start_at=("blocks.1.resid_post", _run(h)["resid_post", 1])),
            "what leaves block 3 enters block 4",
            lambda h: _run(h, start_at=("blocks.2.resid_pre", _run(h)["resid_post", 1])),
        ),
        Case(
            lambda h: _run(h, start_at="blocks.1.resid_pre"),
            "start_at=('blocks.4.resid_pre', value)",
            lambda h: _run(h, start_at=("blocks.1.resid_pre", _run(h)["resid_pre", 1])),
        ),
    ],
    "start-value": [
        Case(
            lambda h: _run(h, start_at=("blocks.1.resid_pre", _run(h)["resid_pre", 1][:, 1:])),
            "such as a captured resid_pre",
            lambda h: _run(h, start_at=("blocks.1.resid_pre", _run(h)["resid_pre", 1])),
        )
    ],
    "start-with-cache": [
        Case(
            lambda h: h.model(
                IDS, start_at=("blocks.1.resid_pre", _run(h)["resid_pre", 1]), cache=pl.KeyValueCache(h.model.config, 2)
            ),
            "Leave the cache out",
            lambda h: h.model(IDS, start_at=("blocks.1.resid_pre", _run(h)["resid_pre", 1])),
        )
    ],
    "layer-name": [Case(lambda h: _run(h).get("embed", 3), "default=...", lambda h: _run(h).get("embed", default=3))],
    "not-of-every-block": [
        Case(
            lambda h: _run(h).stack("blocks.0.resid_pre"),
            "ckpts.stack('resid_pre')",
            lambda h: _run(h).stack("resid_pre"),
        ),
        Case(lambda h: _run(h).stack("embed"), "ckpts['ckpt_embed']", lambda h: _run(h)["ckpt_embed"]),
    ],
    "not-captured": [
        Case(
            lambda h: _run(h, names="embed")["resid_pre", 0],
            "names=",
            lambda h: _run(h, names=["embed", ("resid_pre", 0)])["resid_pre", 0],
        ),
        Case(
            lambda h: _run(h, names="embed").stack("resid_pre"),
            "names=",
            lambda h: _run(h, names=["embed", "resid_pre"]).stack("resid_pre"),
        ),
    ],
    "not-ckpts": [
        Case(
            lambda h: pl.ActivationCkpts.load(h.weights),
            "ActivationCkpts.save",
            lambda h: (_run(h).save(h.folder / "x.safetensors"), pl.ActivationCkpts.load(h.folder / "x.safetensors")),
        )
    ],
    "grads-of-a-part": [Case(lambda h: _run(h, grads=True, pos=0), "whole value", lambda h: _run(h, grads=True))],
    # edits
    "edit-kind": [
        Case(lambda h: _run(h, edits=["zero"]), "pl.Edit.zero", lambda h: _run(h, edits=[EDIT.zero("embed")])),
        Case(
            lambda h: _run(h, edits=[EDIT.zero([])]),
            "the name of a checkpoint",
            lambda h: _run(h, edits=[EDIT.zero("embed")]),
        ),
        Case(lambda h: EDIT.patch("embed", 1), "run_with_ckpts returned", lambda h: EDIT.patch("embed", _run(h))),
        Case(lambda h: EDIT.apply("embed", 1), "Edit.replace", lambda h: EDIT.replace("embed", 1)),
    ],
    "edit-misfit": [
        Case(
            _apply("embed", lambda h: EDIT.replace("embed", torch.ones(5))),
            "every axis kept",
            _apply("embed", lambda h: EDIT.replace("embed", torch.ones(2, 3, 48))),
        ),
        Case(
            _apply("embed", lambda h: EDIT.apply("embed", lambda part: part[0, 0, :5])),
            "every axis kept",
            _apply("embed", lambda h: EDIT.apply("embed", lambda part: part * 2)),
        ),
        Case(
            _apply("z", lambda h: EDIT.mean_ablate("z", _run(h, heads=0), heads=0)),
            "all heads",
            _apply("z", lambda h: EDIT.mean_ablate("z", _run(h), heads=0)),
        ),
        Case(
            _apply("embed", lambda h: EDIT.patch("embed", h.model.run_with_ckpts([[1], [2, 3, 4]])[1])),
            "where both have tokens",
            _apply("embed", lambda h: EDIT.patch("embed", h.model.run_with_ckpts([[1], [2, 3, 4]])[1], pos=-1)),
        ),
    ],
    "patch-of-another-length": [
        Case(
            _apply("embed", lambda h: EDIT.patch("embed", h.model.run_with_ckpts([[1] * 5] * 2)[1])),
            "pos=-1",
            _apply("embed", lambda h: EDIT.patch("embed", h.model.run_with_ckpts([[1] * 5] * 2)[1], pos=-1)),
        ),
        Case(
            _apply("embed", lambda h: EDIT.patch("pattern", h.model.run_with_ckpts([[1] * 5] * 2)[1])),
            "attn.ckpt_z",
            _apply("embed", lambda h: EDIT.patch("attn.ckpt_z", h.model.run_with_ckpts([[1] * 5] * 2)[1], pos=-1)),
        ),
    ],
    "patch-of-a-part": [
        Case(
            _apply("embed", lambda h: EDIT.patch("embed", _run(h, pos=0))),
            "without pos=",
            _apply("embed", lambda h: EDIT.patch("embed", _run(h), pos=0)),
        )
    ],
    "edit-mean-of-pads": [
        Case(
            _apply(
                "embed",
                lambda h: EDIT.mean_ablate(
                    "embed",
                    pl.ActivationCkpts(
                        {"ckpt_embed": torch.zeros(1, 1, 48)},
                        pl.Batch(IDS[:1, :1], IDS[:1, :1] < 0, IDS[:1, :1]),
                        support.schema(3),
                    ),
                ),
            ),
            "some text has a token",
            _apply("embed", lambda h: EDIT.mean_ablate("embed", _run(h))),
        )
    ],
    "edit-mean-of-pattern": [
        Case(
            _apply("embed", lambda h: EDIT.mean_ablate("pattern")),
            "ckpt_z",
            _apply("embed", lambda h: EDIT.mean_ablate("attn.ckpt_z")),
        )
    ],
    "edit-never-fired": [
        Case(
            lambda h: _run(h, names="embed", stop_at="embed", edits=EDIT.zero("resid_post")),
            "choose others",
            lambda h: _run(h, names="embed", stop_at="embed", edits=EDIT.zero("embed")),
        )
    ],
    "edit-needs-the-text": [
        Case(
            lambda h: _generate(h, edits=EDIT.mean_ablate("embed")),
            "Edit.mean_ablate(names, ckpts)",
            lambda h: _generate(h, edits=EDIT.mean_ablate("embed", _run(h))),
        )
    ],
    "negative-position": [
        Case(
            lambda h: _generate(h, edits=EDIT.zero("embed", pos=-1)),
            "count from 0",
            lambda h: _generate(h, edits=EDIT.zero("embed", pos=2)),
        )
    ],
    "index-out-of-range": [
        Case(lambda h: _run(h, pos=3), "that exist", lambda h: _run(h, pos=2)),
        Case(lambda h: _run(h, pos=slice(0, 2, 0)), "a step is not 0", lambda h: _run(h, pos=slice(0, 2, 1))),
    ],
    "no-such-axis": [
        Case(
            lambda h: _run(h, edits=EDIT.zero("embed", heads=0)),
            "Leave heads= out",
            lambda h: _run(h, edits=EDIT.zero("embed")),
        )
    ],
    # generation
    "sampler-setting": [
        Case(
            lambda h: _generate(h, sampler=0.8),
            "pl.Sampler(temperature=0.8, top_p=0.9)",
            lambda h: _generate(h, sampler=pl.Sampler(temperature=0.8, top_p=0.9)),
        ),
        Case(lambda h: pl.Sampler(top_p=2), "from 0 to 1", lambda h: pl.Sampler(top_p=1)),
    ],
    "logits-shape": [
        Case(
            lambda h: pl.Sampler().explain(h.model([1, 2])),
            "logits[0, -1]",
            lambda h: pl.Sampler().explain(h.model([1, 2])[0, -1]),
        )
    ],
    "early-stopping": [
        Case(
            lambda h: _generate(h, num_beams=2, early_stopping="soon"),
            "one of these",
            lambda h: _generate(h, num_beams=2, early_stopping="never"),
        )
    ],
    "length-penalty": [
        Case(
            lambda h: _generate(h, num_beams=2, length_penalty=1e9),
            "Give 1 to divide by the length",
            lambda h: _generate(h, num_beams=2, length_penalty=1),
        ),
        Case(
            lambda h: _generate(h, length_penalty=2.0),
            "num_beams",
            lambda h: _generate(h, length_penalty=2.0, num_beams=2),
        ),
    ],
    "beams-vocabulary": [
        Case(
            lambda h: support.glass(vocab_size=1).generate([0, 0], num_beams=2, max_new_tokens=2, end_ids=()),
            "num_beams=1",
            lambda h: support.glass(vocab_size=1).generate([0, 0], num_beams=1, max_new_tokens=2, end_ids=()),
        ),
        Case(
            lambda h: support.glass(vocab_size=2).generate([0, 1], num_beams=2, max_new_tokens=2, end_ids=(0, 1)),
            "fewer end_ids",
            lambda h: support.glass(vocab_size=2).generate([0, 1], num_beams=2, max_new_tokens=2, end_ids=0),
        ),
    ],
    "look-and-beams": [
        Case(
            lambda h: _generate(h, num_beams=2, names="ckpt_embed"),
            "model.run_with_ckpts(out.ids)",
            lambda h: h.model.run_with_ckpts(_generate(h, num_beams=2).ids, names="ckpt_embed"),
        )
    ],
    "stream-beams": [
        Case(
            lambda h: _with_file({"num_beams": 2}).stream([1, 2], sampler="file"),
            "model.generation = model.generation.without('num_beams')",
            lambda h: list(_without("num_beams", {"num_beams": 2}).stream([1, 2], sampler="file", max_new_tokens=2)),
        )
    ],
    "generation-not-implemented": [
        Case(
            lambda h: _with_file({"guidance_scale": 2.0}).generate([1, 2], sampler="file"),
            "model.generation = model.generation.without('guidance_scale')",
            lambda h: _without("guidance_scale", {"guidance_scale": 2.0}).generate([1, 2], sampler="file"),
        )
    ],
    "generation-wrong-type": [
        Case(
            lambda h: setattr(h.model, "generation", {"eos_token_id": 0}),
            "pl.GenerationSettings({'eos_token_id': 0, 'top_p': 0.9})",
            lambda h: _with_file({"eos_token_id": 0, "top_p": 0.9}),
        ),
        Case(
            lambda h: pl.GenerationSettings([("eos_token_id", 0)]),
            "{'eos_token_id': 0}",
            lambda h: pl.GenerationSettings({"eos_token_id": 0}),
        ),
    ],
    "return-sequences": [
        Case(
            lambda h: _generate(h, num_return_sequences=0),
            "from 1 to 65536",
            lambda h: _generate(h, num_return_sequences=1),
        ),
        Case(
            lambda h: _generate(h, num_return_sequences=2),
            "num_beams",
            lambda h: _generate(h, num_return_sequences=2, num_beams=2),
        ),
    ],
    "overflow": [
        Case(lambda h: _generate(h, overflow="cut"), "overflow='slide'", lambda h: _generate(h, overflow="slide"))
    ],
    "look-and-slide": [
        Case(
            lambda h: _generate(h, names="embed", max_new_tokens=70, overflow="slide"),
            "within the context",
            lambda h: _generate(h, names="embed", max_new_tokens=7),
        )
    ],
    "seed": [
        Case(lambda h: _generate(h, seed="x"), "Leave it out", _generate),
        Case(
            lambda h: _generate(h, sampler=pl.Sampler(), seed=2**70),
            "Give a whole number",
            lambda h: _generate(h, sampler=pl.Sampler(), seed=7),
        ),
    ],
    "max-new-tokens": [
        Case(lambda h: _generate(h, max_new_tokens=-1), "0 gives the prompt", lambda h: _generate(h, max_new_tokens=0))
    ],
    "empty-stop": [Case(lambda h: _generate(h, stop=""), "Leave it out", _generate)],
    "nothing-left": [
        Case(
            lambda h: _generate(h, sampler=pl.Sampler(suppress_tokens=range(211))),
            "Suppress fewer",
            lambda h: _generate(h, sampler=pl.Sampler(suppress_tokens=range(200))),
        )
    ],
    # caches
    "cache-rows": [
        Case(
            lambda h: h.model(IDS, cache=_cached(h, 1)),
            "cache.fork(rows)",
            lambda h: h.model(IDS, cache=_cached(h, 1).fork(2)),
        )
    ],
    "cache-misfit": [
        Case(
            lambda h: pl.KeyValueCache(h.model.config, 10**9, 10**6),
            "fewer rows or columns; KeyValueCache.bytes_needed(",
            lambda h: pl.KeyValueCache(h.model.config, 10),
        ),
        Case(
            lambda h: pl.KeyValueCache(h.model.config, dtype=torch.int8),
            "dtype=model.dtype",
            lambda h: pl.KeyValueCache(h.model.config, 1, dtype=h.model.dtype, device=h.model.device),
        ),
        Case(
            lambda h: h.model([[1]], cache=pl.KeyValueCache(h.told.config)),
            "KeyValueCache(model.config, rows",
            lambda h: h.model([[1]], cache=pl.KeyValueCache(h.model.config, 1)),
        ),
    ],
    "cache-empty": [
        Case(
            lambda h: pl.KeyValueCache(h.model.config, 0),
            "number of texts",
            lambda h: pl.KeyValueCache(h.model.config, 1),
        )
    ],
    "cache-full": [
        Case(lambda h: h.model([[1]], cache=_cached(h, 4)), "larger", lambda h: h.model([[1]], cache=_cached(h, 4, 5)))
    ],
    "cache-rewind": [Case(lambda h: _cached(h, 2).rewind(3), "had before", lambda h: _cached(h, 2).rewind(1))],
    "cache-fork": [Case(lambda h: _cached(h, 3).fork(capacity=2), "room", lambda h: _cached(h, 3).fork(capacity=3))],
    "tokenizer-kind": [
        Case(
            lambda h: pl.compare(h.told, h.told, inputs="one", tokenizer="bundled"),
            "pl.load(name).tokenizer",
            lambda h: pl.compare(h.told, h.told, inputs="one", tokenizer=pl.load("bundled").tokenizer),
        ),
        Case(
            lambda h: setattr(h.told, "tokenizer", pl.Tokenizer) or h.told.tokenize("one"),
            "pl.load(name).tokenizer",
            lambda h: setattr(h.told, "tokenizer", pl.load("bundled").tokenizer) or h.told.tokenize("one"),
        ),
    ],
    "not-a-cache": [
        Case(
            lambda h: pl.KeyValueCache.load(h.weights),
            "KeyValueCache.save",
            lambda h: (
                _cached(h, 2).save(h.folder / "c.safetensors"),
                pl.KeyValueCache.load(h.folder / "c.safetensors"),
            ),
        )
    ],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("remedies")
    model, told = support.glass(eos_token_id=9, bos_token_id=9), pl.load()
    model.save_pretrained(folder / "model")
    batch = model.tokenize([[1], [2, 3, 4]])
    return Here(model=model, told=told, batch=batch, folder=folder, weights=folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)


def test_every_remedy_is_followed() -> None:
    codes, followed = codes_of_the_source(), codes_followed()
    for name in NO_CODES:
        del codes[name]
    missing = {code: place for code, place in codes.items() if code not in {*followed, *NOT_FOLLOWED}}
    assert not missing, f"no test follows the remedy of {missing}"
    assert not set(followed) - set(codes), "tests follow codes that are gone"
    assert not set(NOT_FOLLOWED) & set(followed) | set(NOT_FOLLOWED) - set(codes), "excuses that are not needed"


def test_the_codes_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """As an argument, in a condition, as a default, in a table; and a declaration as a marker or in a table."""
    (tmp_path / "a.py").write_text(
        "raise E(code='one' if x else 'the-other')\n"
        "def read(path, code='by-default'): ...\nread(path, 'by-place')\nTABLE = {'x': ('in-a-table', 3)}\n"
    )
    assert set(codes_of_the_source(tmp_path)) == {"one", "the-other", "by-default", "by-place", "in-a-table"}
    (tmp_path / "a.py").write_text(
        "REMEDIES: dict[str, list[Case]] = {'a-b': []}\nOTHERS: dict[str, int] = {'c-d': 1}\n"
        "@pytest.mark.remedy('e-f', 'g')\ndef test(): ...\n"
    )
    assert set(codes_followed(tmp_path)) == {"a-b", "e-f", "g"}


def test_what_is_met_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with codes_met(monkeypatch) as met:
        pl.InputError("x", code="of-an-error", remedy="y")
    pl.InputError("x", code="afterwards", remedy="y")
    assert met == {"of-an-error"}
