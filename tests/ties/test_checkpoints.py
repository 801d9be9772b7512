"""Audits of files and folders: what they hold, what they take, and what reading them really gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model

import pellucid as pl
import support
from pellucid.ties import TieAudit, audit_ties, save_hf, ties_report
from ties import cases

TIE = ("transformer.wte.weight", "lm_head.weight")


def codes(audit: TieAudit) -> list[str]:
    return [problem.code for problem in audit.problems]


def saved(row: str, folder: Path, **fields: Any) -> tuple[Any, Path]:
    model = cases.changed(row, **fields)
    model.save_pretrained(folder)
    return model, folder


def weights_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def reading(folder: Path, model: Any, **options: Any) -> tuple[bool, bool]:
    """Whether `from_pretrained` gives every tensor of the file, and a tied head. `model` knows nothing of the file."""
    cls = type(model)
    again, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    complete = not info["missing_keys"] and not info["unexpected_keys"]
    return complete and not random_head(folder, cls, options), again.lm_head.weight is again.transformer.wte.weight


def random_head(folder: Path, cls: Any, options: dict[str, Any]) -> bool:
    """Two reads of one file differ only in what was drawn."""
    heads = [cls.from_pretrained(folder, **options).lm_head.weight for _ in range(2)]
    return not torch.equal(*heads)


@pytest.mark.parametrize(
    ("row", "untied"),
    support.few_of(
        [(row, untied) for row in cases.ROWS if row != "head that wraps the embedding" for untied in (None, False)],
        *((row, None) for row in cases.ROWS),
        ("nothing", False),
        ("new Linear", False),
    ),
)
def test_a_folder_is_predicted_as_it_is_read(row: str, untied: bool | None, tmp_path: Path) -> None:
    """With `tie_word_embeddings=False` on a tied checkpoint: a random head, the last row of the table."""
    model, folder = saved(row, tmp_path)
    options = {} if untied is None else {"tie_word_embeddings": untied}
    audit = audit_ties(folder, **options)
    complete, tied = reading(folder, model, **options)
    lost_names = "Sequential" in row or row == "Linear with a bias"  # transformers says nothing of them
    assert audit.after_reload.survives == (complete and not lost_names)
    assert audit.after_reload.tied_after == tied
    assert audit.bytes_on_disk == weights_size(folder)
    expected = {
        "new Linear": [] if untied is not None else ["tied-by-config-only"],
        "nothing": ["tie-not-in-config"] if untied is not None else [],
    }
    if row in expected:
        assert codes(audit) == expected[row]


def test_the_random_head_of_a_tied_checkpoint(tmp_path: Path) -> None:
    model, folder = saved("nothing", tmp_path)
    audit = audit_ties(folder, tie_word_embeddings=False)
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == (False, False)
    assert "random" in audit.after_reload.reason
    assert random_head(folder, type(model), {"tie_word_embeddings": False})
    assert not random_head(folder, type(model), {})


def test_counts_of_a_tied_folder_are_those_of_the_model(tmp_path: Path) -> None:
    model, folder = saved("nothing", tmp_path)
    audit, live = audit_ties(folder), audit_ties(model)
    assert (audit.unique, audit.by_name, audit.bytes_in_memory) == (live.unique, live.by_name, live.bytes_in_memory)
    (tie,) = audit.groups
    assert (tie.kind, tie.names) == ("declared", TIE)


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_of_ours(tied: bool, tmp_path: Path) -> None:
    """A tied tensor is written once."""
    model = support.glass(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    audit = ties_report(tmp_path)
    assert (audit.unique, audit.by_name) == (audit_ties(model).unique, audit_ties(model).by_name)
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == (True, tied)
    assert codes(audit) == []
    assert 0 < audit.bytes_on_disk - audit_ties(model).bytes_on_disk < 10_000


def test_the_bundled_model() -> None:
    audit = ties_report(str(Path(pl.__file__).parent / "bundled"))
    assert codes(audit) == []
    assert audit.after_reload.tied_after


def test_shards(tmp_path: Path) -> None:
    model = cases.small(tie_word_embeddings=False)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        audit = audit_ties(path)
        assert audit.unique == audit_ties(model).unique
        assert audit.bytes_on_disk == weights_size(tmp_path)
        assert audit.after_reload.survives is True


def test_pickled_shards(tmp_path: Path) -> None:
    """Each shard is a file of its own, so that a tie across two of them is stored twice."""
    model = cases.small()
    model.config.save_pretrained(tmp_path)
    head = {"lm_head.weight": model.lm_head.weight.detach()}
    rest = {name: tensor for name, tensor in model.state_dict().items() if name not in head}
    shards = {"pytorch_model-00001-of-00002.bin": rest, "pytorch_model-00002-of-00002.bin": head}
    for file, tensors in shards.items():
        torch.save(tensors, tmp_path / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    audit = audit_ties(tmp_path)
    assert codes(audit) == ["stored-twice"]
    assert audit.bytes_on_disk == weights_size(tmp_path)
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == reading(tmp_path, model) == (True, True)


def test_a_bin_holds_both_names_over_one_storage(tmp_path: Path) -> None:
    model = cases.small()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    audit = audit_ties(tmp_path)
    assert [(group.kind, group.names) for group in audit.groups] == [("same memory", TIE)]
    assert (audit.unique, audit.by_name) == (audit_ties(model).unique, audit_ties(model).by_name)
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == (True, True)
    assert codes(audit) == []
    assert reading(tmp_path, model) == (True, True)


def test_a_bin_with_a_row_of_a_matrix(tmp_path: Path) -> None:
    torch.save({"row": torch.randn(1000, 64)[3]}, tmp_path / "row.bin")
    audit = audit_ties(tmp_path / "row.bin")
    assert audit.bytes_on_disk > 256_000
    assert codes(audit) == ["part-of-more"]


def test_save_model_keeps_the_other_name(tmp_path: Path) -> None:
    """`safetensors.torch.save_model` keeps the first name; a model without a head then lacks an embedding."""
    import transformers as t

    model = cases.small()
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    audit = audit_ties(tmp_path)
    assert audit.declared.recorded == {"transformer.wte.weight": "lm_head.weight"}
    assert [(group.kind, set(group.names)) for group in audit.groups] == [("declared", set(TIE))]
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == (True, True)
    assert codes(audit) == ["embedding-not-stored"]
    assert reading(tmp_path, model) == (True, True)
    _, info = t.GPT2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"wte.weight"}
    headless = audit_headless(tmp_path)
    assert headless.survives is False


def audit_headless(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    return audit_ties(folder).after_reload


@pytest.mark.remedy("stored-twice")
def test_equal_tensors_stored_twice(tmp_path: Path) -> None:
    model = cases.small()
    model.config.save_pretrained(tmp_path)
    save_file(
        {name: t.clone() for name, t in model.state_dict().items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    audit = audit_ties(tmp_path)
    assert codes(audit) == ["stored-twice"]
    assert [(group.kind, set(group.names)) for group in audit.groups] == [("equal", set(TIE))]
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == reading(tmp_path, model) == (True, True)
    save_hf(type(model).from_pretrained(tmp_path), tmp_path / "again")
    assert codes(audit_ties(tmp_path / "again")) == []
    assert audit_ties(tmp_path / "again").bytes_on_disk < audit.bytes_on_disk


def test_headless_and_other_names(tmp_path: Path) -> None:
    """As OpenAI's own file is: names without the prefix, no head, causal masks besides."""
    model = cases.small()
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(tmp_path)
    tensors = {
        n.removeprefix("transformer."): t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    audit = audit_ties(tmp_path)
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == (True, True)
    assert codes(audit) == []
    assert audit.by_name - audit.unique == cases.VOCAB * cases.WIDTH
    import transformers as t

    t.GPT2Model(t.GPT2Config(**cases.SIZES)).save_pretrained(tmp_path / "headless")
    after = audit_ties(tmp_path / "headless").after_reload
    assert (after.survives, after.tied_after) == (True, None)


@pytest.mark.parametrize("family", ["llama", "llama, tied", "bert", "classifier"])
def test_other_families(family: str, tmp_path: Path) -> None:
    from ties.test_table import families

    cls, config = families()[family]
    model = cls(config)
    model.save_pretrained(tmp_path)
    stored, audit = audit_ties(tmp_path), audit_ties(model)
    after, live = stored.after_reload, audit.after_reload
    assert (stored.declared.by_class or {}).items() <= (audit.declared.by_cache or {}).items(), "by their own names"
    assert bool(stored.declared.by_class) == bool(after.tied_after)
    assert (stored.unique, stored.by_name) == (audit.unique, audit.by_name)
    if family == "classifier":  # a GPT-2 that is no language model: only its class knows the score
        assert after.survives is not True or after.tied_after == live.tied_after
    else:
        assert (after.survives, after.tied_after) == (live.survives, live.tied_after) == (True, live.tied_after)


def test_without_a_configuration_nothing_is_predicted(tmp_path: Path) -> None:
    save_file({"a": torch.randn(3)}, tmp_path / "x.safetensors")
    after = audit_ties(tmp_path / "x.safetensors").after_reload
    assert after.survives is None
    assert "config.json" in after.reason


def test_a_family_that_nobody_knows(tmp_path: Path) -> None:
    save_file({"a": torch.randn(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "nobody", "architectures": ["Nothing"]}')
    after = audit_ties(tmp_path).after_reload
    assert after.survives is None
    assert "nobody" in after.reason


def test_layouts_that_transformers_does_not_read(tmp_path: Path) -> None:
    from weights.checkpoints import nanogpt_dict, small_hf

    hf = small_hf(tie_word_embeddings=False)
    torch.save(
        {
            "model": nanogpt_dict(hf),
            "model_args": {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 20, "vocab_size": 61, "bias": True},
        },
        tmp_path / "ckpt.pt",
    )
    hf.config.save_pretrained(tmp_path)
    after = audit_ties(tmp_path).after_reload
    assert after.survives is None
    assert "nanogpt" in after.reason


def test_one_field_that_is_left_out_is_named_whole(tmp_path: Path) -> None:
    _, folder = saved("nothing", tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": False}))
    assert ties_report(folder, ignore_config="tie_word_embeddings_now").declared.by_config is False
    assert ties_report(folder, ignore_config="tie_word_embeddings").declared.by_config is True


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(pl.NotFoundError):
        ties_report(tmp_path / "nowhere.safetensors")
    with pytest.raises(pl.NotFoundError):
        ties_report(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(pl.WeightsError):
        ties_report(tmp_path)


def test_an_audit_of_a_file_leaves_it_alone(tmp_path: Path) -> None:
    _, folder = saved("equal-valued clone", tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    audit_ties(folder)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", ""])
def test_names_of_a_wrapper_are_not_read(wrapper: str, tmp_path: Path) -> None:
    """pellucid.load looks below them, transformers does not."""
    model, folder = saved("nothing", tmp_path)
    tensors = {f"{wrapper}{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    audit = audit_ties(folder)
    assert audit.after_reload.survives == reading(folder, model)[0] == (not wrapper)
    assert ("reload-dropped" in codes(audit)) == bool(wrapper)
    assert not wrapper or any("inside of the wrapper" in problem.remedy for problem in audit.problems)


@pytest.mark.parametrize(
    "name", ["GPT2ForSequenceClassification", "GPT2DoubleHeadsModel", "GPT2ForTokenClassification"]
)
def test_classes_for_other_tasks(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name)
    config = transformers.GPT2Config(vocab_size=53, n_positions=16, n_embd=24, n_layer=2, n_head=3, pad_token_id=0)
    cls(config).save_pretrained(tmp_path)
    _, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    audit = audit_ties(tmp_path)
    assert (audit.after_reload.survives, codes(audit)) == (True, [])


@pytest.mark.parametrize(
    "fields",
    [
        {"n_layer": 10**6},
        {"n_layer": 2**32},
        {"num_hidden_layers": 10**8},
        {"model_type": "llama", "num_hidden_layers": 10**7},
        {"model_type": "llava", "text_config": {"num_hidden_layers": 10**7}},
    ],
)
def test_a_configuration_that_promises_blocks_without_end_is_answered_at_once(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    _, folder = saved("nothing", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    after = audit_ties(folder).after_reload
    assert after.survives is None
    assert "blocks" in (after.reason or "")


@pytest.mark.parametrize("given", [5, {"a": 1}, [1, 2, 3], [], "GPT2LMHeadModel", None, [None]])
def test_architectures_of_any_kind_are_read(given: Any, tmp_path: Path) -> None:
    _, folder = saved("nothing", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": given}))
    assert audit_ties(folder).after_reload.survives


def test_weights_under_a_key_are_audited_and_not_read_by_transformers(tmp_path: Path) -> None:
    model, folder = saved("nothing", tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"net": model.state_dict()}, folder / "pytorch_model.bin")
    audit = audit_ties(folder)
    assert audit.after_reload.survives is None
    assert "'net'" in (audit.after_reload.reason or "")
