"""Words of other libraries: an error says what to use here, what it says works, and the documentation says the same."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import itertools
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
import pellucid.gpt2
import support
from pellucid.lens.readout import Readout
from pellucid.names import attributes, calls
from pellucid.names.attributes import CKPTS, MODEL, TOKENIZER
from pellucid.schema import Schema
from pellucid.viewer.views import View

PAGE = Path(__file__).parents[2] / "docs" / "coming_from_hookedtransformer.md"
TABLES = {"model": MODEL, "ckpts": CKPTS, "tokenizer": TOKENIZER}
ROWS = [(owner, name) for owner, table in TABLES.items() for name in table]


def _names() -> dict[str, Any]:
    """What the remedies speak of."""
    model = pl.load()
    ids = model.tokenize("Once upon a cat").ids
    with torch.no_grad():
        _, ckpts = model.run_with_ckpts(ids)
    return {
        "pl": pl, "torch": torch, "model": model, "tokenizer": model.tokenizer,
        "ckpts": ckpts, "inputs": ids, "ids": ids[0], "text": "one cat sat",
        "token": 5, "tokens": [5, 6], "name": "ckpt_embed", "hook": lambda module, args, out: None,
        "vector": torch.zeros(256),
    }  # fmt: skip


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return _names()


@pytest.mark.parametrize(("owner", "name"), ROWS)
def test_the_attribute_does_not_exist_and_the_error_says_what_does(
    names: dict[str, Any], owner: str, name: str
) -> None:
    assert not hasattr(names[owner], name)
    assert getattr(names[owner], name, None) is None
    with pytest.raises(pl.UnknownAttributeError) as caught:
        getattr(names[owner], name)
    assert caught.value.code == "unknown-attribute"
    assert isinstance(caught.value, AttributeError)
    assert caught.value.remedy.startswith("Use ")


PROSE = {"b_U", "fold_layer_norm", "fold_value_biases", "process_weights_", "center_unembed", "center_writing_weights",
         "refactor_factored_attn_matrices", "load_and_process_state_dict", "model", "resize_token_embeddings",
         "reset_hooks", "remove_all_hook_fns", "pad_token",
         "add_tokens", "add_special_tokens", "apply_chat_template"}  # fmt: skip
"""Whose remedy is a sentence and no expression."""


@pytest.mark.parametrize(("owner", "name"), [row for row in ROWS if row[1] not in PROSE])
def test_what_the_error_says_works(names: dict[str, Any], owner: str, name: str, tmp_path: Path) -> None:
    said = TABLES[owner][name]
    code = re.sub(r" for the last$", "", said).replace(", and ", "; ").replace("'folder'", repr(str(tmp_path)))
    code = re.sub(r"(\)|\]|embed) and ", r"\1; ", code)
    parts = [part.strip() for part in code.split(";")]
    with torch.no_grad():
        for part in parts:
            ast.parse(part)
            exec(part, dict(names))


CONFIGS = (
    pl.TransformerConfig(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1),
    pl.LlamaConfig(
        vocab_size=9, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4,
    ),
    pl.GPTNeoXConfig(
        vocab_size=9, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4,
    ),
)  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_answers_to_the_names_of_others(config: Any) -> None:
    """The sizes of every family under the names of every library; a family's own names are its fields."""
    model = pl.CkptedTransformer(config)
    for name, said in attributes.CONFIG.items():
        if name not in config.declared() and not hasattr(type(config), name):
            with pytest.raises(pl.UnknownAttributeError) as caught:
                getattr(config, name)
            assert caught.value.remedy == f"Use {said}."
        assert eval(said, {"model": model, "config": config}) is not None
    kept = type(config).from_dict({**config.to_dict(), "author": "Ann"})
    with pytest.raises(pl.UnknownAttributeError, match="author") as caught:
        kept.author  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert eval(caught.value.remedy.removeprefix("Use ").removesuffix("."), {"config": kept}) == "Ann"
    assert copy.deepcopy(kept) == pickle.loads(pickle.dumps(kept)) == kept


def test_a_setting_that_a_tokenizer_has_not_is_not_kept(names: dict[str, Any]) -> None:
    for name in ("pad_token", "padding_side", "model_max_length"):
        with pytest.raises(pl.UnknownAttributeError, match=name):
            setattr(names["tokenizer"], name, "<pad>")
        assert name not in vars(names["tokenizer"])


ROOMS = ("attribution", "circuits", "corpus", "heads", "lens", "measure", "metrics", "patching", "plot", "reproduce",
         "sae")  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_a_misspelt_argument_is_told_the_right_one(room: str) -> None:
    """Every public function of every room, for each of its arguments."""
    package = importlib.import_module(f"pellucid.{room}")
    functions = [found for name in dir(package) if inspect.isfunction(found := getattr(package, name))
                 and found.__module__.startswith(package.__name__) and not name.startswith("_")]  # fmt: skip
    assert functions
    for function in functions:
        for name in inspect.signature(function).parameters:
            with pytest.raises(pl.UnknownArgumentError) as caught:
                function(**{f"{name}{name[-1]}": None})
            assert repr(name) in caught.value.remedy


def test_a_module_says_what_to_call_for_a_verb_of_others() -> None:
    """And the call runs as it stands, with what its arguments are called."""
    model, given = support.glass(), {"right": 3, "wrong": 4, "metric": pl.metrics.logit_difference(3, 4)}
    clean, corrupted = support.some_ids(1, 5), support.some_ids(1, 5, seed=1)
    named = {"pl": pl, "model": model, "clean": clean, "corrupted": corrupted, **given}
    named["ckpts"] = model.run_with_ckpts(clean)[1]
    for room in ("patching", "metrics", "attribution", "lens", "heads"):
        for name in getattr(calls, room.upper()):
            with pytest.raises(pl.UnknownAttributeError, match=name) as caught:
                getattr(getattr(pl, room), name)
            assert eval(caught.value.remedy.removeprefix("Use ").removesuffix("."), named) is not None
        with pytest.raises(AttributeError, match="no_such_verb"):
            getattr(pl, room).no_such_verb  # noqa: B018


PARTS = {
    "model.blocks[3]": attributes.BLOCK, "model.blocks[1].attn": attributes.ATTENTION,
    "model.blocks[0].mlp": attributes.MLP,
    "model.blocks[2].ln1": attributes.NORM, "model.ln_final": attributes.NORM, "model.pos_embed": attributes.POS_EMBED,
    "model.unembed": attributes.UNEMBED, "pl": attributes.PACKAGE, "pl.Edit": attributes.EDIT,
}  # fmt: skip
"""Parts of a model, and the package itself, as they are written -> the words that they answer."""


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_model_says_what_to_use(names: dict[str, Any], part: str) -> None:
    """Its remedy names the very part that was asked: that of block 3 speaks of block 3, and runs as it stands."""
    for name in PARTS[part]:
        with pytest.raises(pl.UnknownAttributeError) as caught:
            getattr(eval(part, dict(names)), name)
        remedy = caught.value.remedy.removeprefix("Use ").removesuffix(".")
        assert part in remedy or name in ("hook_result", "head_dim", "b_U", "bias") or part == "pl"
        if remedy == MODEL["b_U"]:
            continue
        given = dict(names) | {"module": names["model"].blocks[0]}
        for code in remedy.split(";")[0].replace("hook), or ", "hook) and ").split(" and "):
            eval(code.removesuffix(" of model.run_with_ckpts").removeprefix("edits="), given)
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'") as plain:
        getattr(eval(part, dict(names)), "no_such_thing")  # noqa: B009
    assert not isinstance(plain.value, pl.PellucidError)


VERBS = [pl.load, pl.CkptedTransformer.from_pretrained]


@pytest.mark.parametrize(
    ("verb", "name"),
    support.few_of(itertools.product(VERBS, calls.OPENING), VERBS[0], (VERBS[1], next(iter(calls.OPENING)))),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_arguments_by_which_others_open_a_model(verb: Any, name: str) -> None:
    """What the error says to pass is taken, and the rest is left out."""
    with pytest.raises(pl.UnknownArgumentError) as caught:
        verb("bundled", **{name: True})
    assert isinstance(caught.value, TypeError)
    said = re.search(r"Pass (\w+=(?:pl\.)?(?:[^.,: ]|\.{3}|: )+)", caught.value.remedy)
    assert (said is None) == caught.value.remedy.startswith("Leave it out")
    given = eval(f"dict({said[1]})", {"pl": pl}) if said else {}
    assert verb("bundled", **given).config.n_layer == 4


def test_a_copy_of_a_live_model_takes_what_it_does() -> None:
    hf = support.reference()
    for name in calls.CONVERTING:
        with pytest.raises(pl.UnknownArgumentError) as caught:
            pl.from_hf(hf, **{name: True})
        assert caught.value.remedy.startswith("Leave it out")
    assert pl.from_hf(hf).to(torch.float64).to("cpu").dtype == torch.float64


def test_without_a_configuration_the_error_says_how_to_make_one() -> None:
    with pytest.raises(pl.ConfigError) as caught:
        pl.CkptedTransformer()
    assert caught.value.code == "config-missing"
    config = re.search(r"pl\.TransformerConfig\(.*?\)", caught.value.remedy)
    assert config is not None
    assert eval(config[0]) == pl.TransformerConfig(
        vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12
    )


def test_a_head_under_another_library_s_name_is_not_taken_in_silence() -> None:
    model, head = pl.load(), torch.nn.Linear(256, 4096, bias=False)
    for name in ("lm_head", "transformer", "W_E"):
        with pytest.raises(pl.UnknownAttributeError, match="nothing would use"):
            setattr(model, name, torch.nn.Sequential(head))
    with pytest.raises(pl.UnknownAttributeError) as caught:
        model.lm_head = head
    exec(caught.value.remedy.removeprefix("Use ").removesuffix("."), {"pl": pl, "model": model, "head": head})
    assert torch.equal(model.unembed.W_U, head.weight.T)


def test_some_of_what_it_says_is_the_same_number(names: dict[str, Any]) -> None:
    model, ckpts = names["model"], names["ckpts"]
    with torch.no_grad():
        results = eval(CKPTS["stack_head_results"], dict(names))
        for i in range(4):
            out = results[i].sum(2) + model.blocks[i].attn.b_O
            assert torch.allclose(out, ckpts["attn_out", i], atol=1e-4)
        for name in ("logit_attrs", "apply_ln_to_stack"):
            whole = eval(CKPTS[name], dict(names)).sum("component")
            assert torch.allclose(torch.tensor(whole.values).float(), model(names["inputs"])[..., 5], atol=1e-3)
        assert eval(MODEL["OV"], dict(names)).shape == (4, 4, 256, 256)


def test_other_attributes_are_as_always(names: dict[str, Any]) -> None:
    for owner in ("model", "ckpts"):
        with pytest.raises(AttributeError) as caught:
            getattr(names[owner], "no_such_thing")  # noqa: B009
        assert not isinstance(caught.value, pl.PellucidError)
    assert not hasattr(names["model"].blocks[0], "run_with_cache")


def test_objects_are_copied_pickled_and_compiled() -> None:
    model = support.glass()
    ids = support.some_ids(1, 5)
    logits, ckpts = model.run_with_ckpts(ids, names="ckpt_embed")
    for made in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(made(ids), logits)
    for made in (copy.copy(ckpts), copy.deepcopy(ckpts), pickle.loads(pickle.dumps(ckpts))):
        assert torch.equal(made["embed"], ckpts["embed"])
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(ids), logits)


def test_the_page_and_the_errors_name_the_same_calls() -> None:
    """Each call of the model or the cache on the page that has an error is answered alike there."""
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(model|cache)\.(\w+)[^`]*`(?:[^|]*)\| ([^|]*)\|$", page, flags=re.M)
    tables = {"model": MODEL, "cache": CKPTS}
    answered = [(owner, name, there) for owner, name, there in rows if name in tables[owner]]
    assert len(answered) >= 14
    for owner, name, there in answered:
        ours = re.findall(r"(?:model|ckpts|handle)[.[]\w+|torch.einsum|pl\.attribution\.\w+", tables[owner][name])
        assert any(call in there for call in ours), (name, there)
    theirs = {name for _, name, _ in rows if not hasattr(pl.CkptedTransformer, name)}
    assert theirs <= {*MODEL, *CKPTS}, "every row of the page has an error"


@pytest.mark.parametrize(("call", "said"), [
    (lambda: pl.Edit.zero("blocks.0.attn.ckpt_z", head=1), "heads="),  # pyright: ignore[reportCallIssue]
    (lambda: pl.Edit.zero("ckpt_embed", position=1), "pos="),  # pyright: ignore[reportCallIssue]
    (lambda: pl.Edit.add("ckpt_embed", 1.0, neuron=1), "neurons="),  # pyright: ignore[reportCallIssue]
    (lambda: pl.Edit.scale("ckpt_embed", 1.0, hads=1), "heads"),  # pyright: ignore[reportCallIssue]
    (lambda: pl.Edit.patch("ckpt_embed", None, layer=1), "blocks.3"),  # pyright: ignore[reportCallIssue]
])  # fmt: skip
def test_edits_answer_other_words(call: Any, said: str) -> None:
    with pytest.raises(pl.UnknownArgumentError) as caught:
        call()
    assert said in caught.value.remedy


def _public_classes() -> list[type]:
    rooms = [pl, *(importlib.import_module(f"pellucid.{room}") for room in ROOMS)]
    found = {getattr(room, name) for room in rooms for name in dir(room) if inspect.isclass(getattr(room, name))}
    found |= {Schema, View, Readout}  # which verbs return
    ours = {base for one in found for base in one.__mro__ if base.__module__.startswith("pellucid.")}
    inside = {"Part", "Statistic", "Tap"}  # whose methods are called by ours alone
    return [one for one in ours if not issubclass(one, BaseException) and one.__name__ not in inside]


def _to_be_passed(function: Any, word: str) -> set[str]:
    """Which arguments it says to pass, called with one of another library's."""
    with pytest.raises(pl.UnknownArgumentError) as caught:
        function(None, **{word: None})
    return {*re.findall(r"Pass (\w+)=", caught.value.remedy)}


def test_a_word_that_others_have_is_no_slip_of_the_pen() -> None:
    """If a call takes nothing of the kind, what it takes is said, not what is spelled alike."""
    for function in (pl.CkptedTransformer.generate, pl.CkptedTransformer.tokenize, pl.CkptedTransformer.loss):
        for word in ("head", "head_index", "position", "neuron"):
            with pytest.raises(pl.UnknownArgumentError, match=word) as caught:
                function(None, **{word: 3})
            assert caught.value.remedy.startswith("It takes inputs")


def test_a_method_of_any_public_class_is_told_the_right_argument() -> None:
    """Whatever object it is called on: its arguments are looked at first, and it is told of none that it lacks."""
    seen = 0
    for owner in _public_classes():
        for name, value in vars(owner).items():
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            parameters = inspect.signature(function).parameters
            kinds = {one.kind for one in parameters.values()}
            if inspect.Parameter.VAR_KEYWORD in kinds:
                continue
            takes = [one for one in parameters if one not in ("self", "cls")]
            for word in {"head", "position", "layer", "input_ids"} - {*takes}:
                assert _to_be_passed(function, word) <= {*takes}, (owner, name, word)
            takes = [] if inspect.Parameter.VAR_POSITIONAL in kinds else takes
            for argument in takes or ["anything"]:
                with pytest.raises(pl.UnknownArgumentError) as caught:
                    function(None, **{f"{argument}{argument[-1]}": None})
                assert repr(argument) in caught.value.remedy or not takes, (owner, name)
                seen += 1
    assert seen > 150
