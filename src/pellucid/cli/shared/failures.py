"""Errors and warnings as a reader at a terminal, or a program, wants them.

An error carries one remedy, in the library's words. Where a verb has an option for it, `WORDS` says so by the error's
code; what can only be done in Python is said to be done there.
"""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.text import Text

from pellucid.cli.shared.screen import LOST_OUTPUT, show_json, tell
from pellucid.errors import NotFoundError, PellucidError, PellucidWarning, Words, elsewhere


class Exit(enum.IntEnum):
    """What the exit codes mean; usage errors (2) are Typer's own, interruption (130) is `pellucid.run.interrupts`'."""

    DONE = 0
    CHECK_FAILED = 1
    NOT_FOUND = 3
    BAD_INPUT = 4
    FAULT = 70  # EX_SOFTWARE of sysexits.h: an exception that nobody foresaw is no failed check


def exit_code(error: PellucidError) -> Exit:
    """The exit code of an error, by its class."""
    return Exit.NOT_FOUND if isinstance(error, NotFoundError) else Exit.BAD_INPUT


def show_failure(error: PellucidError, *, as_json: bool, verb: str = "") -> None:
    """Say what went wrong: to people on stderr, to programs as an object on stdout."""
    remedy = remedy_here(error.code, error.remedy, verb)
    if as_json and error.code != LOST_OUTPUT:
        show_json({"error": {"code": error.code, "message": error.message, "remedy": remedy}})
        return
    text = Text.assemble(("error: ", "bold red"), (error.message, "red"), "  ", (f"[{error.code}]", "dim"))
    tell(text, Text.assemble(("remedy: ", "bold"), remedy))


def show_fault(fault: BaseException, trace: str, *, as_json: bool) -> None:
    """Say that pellucid itself went wrong, with what a report of it needs."""
    words = f"{type(fault).__name__}: {str(fault)[:400] or 'no message'}"
    remedy = "This is a fault of pellucid: please report it with the command and the lines above."
    tell(Text(trace.rstrip()))
    show_failure(PellucidError(words, code="unexpected", remedy=remedy), as_json=as_json)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """`warnings.showwarning` that gives pellucid's own warnings without a place in the code."""
    if issubclass(category, PellucidWarning):
        tell(Text.assemble(("warning: ", "bold yellow"), str(message)))
    else:
        tell(Text(warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")))


def _ignored(found: re.Match[str]) -> str:
    """`pass ignore_config=['a', 'b']` as options."""
    return "add " + " ".join(f"--ignore-config {name}" for name in re.findall(r"[\w.]+", found[1]))


def _of_a_kind(found: re.Match[str]) -> str:
    """`pass config={'model_type': 'llama'}`, a copy of a configuration or fields to ignore, as options."""
    if found[1]:
        return _ignored(found)
    return f"give by --config a copy of its config.json with {found[2]}" if found[2] else "give by --config a copy"


def _of_a_store(found: re.Match[str]) -> str:
    """`Give packing=True, which it was made with, or another path.` as options."""
    remedy = found[0]
    for pattern, words in _STORE.items():
        remedy = re.sub(pattern, words, remedy)
    return remedy


_STORE: Mapping[str, str | Callable[[re.Match[str]], str]] = {
    r"Call torch\.set_num_threads\((.*?)\) first": r"Set OMP_NUM_THREADS=\1",
    r"the model that it was made with, opened in the same way": "its model by -m, with the same --dtype",
    r"Open the model with attention='(\w+)'.*, or give": lambda found: (
        "Give by --config a copy of its config.json with "
        f"'_attn_implementation': {'eager' if found[1] == 'eager' else 'sdpa'!r}, or"
    ),
    r"names=\[(.*)\]": lambda found: " ".join(f"--names {name}" for name in re.findall(r"[\w.]+", found[1])),
    r"dtype='(\w+)'": r"--keep-as \1",
    r"batch_tokens=(\d+)": r"--batch-tokens \1",
    r"packing=True": "--pack",
    r"Give packing=False, which it was made with, or": "Leave --pack out, or give",
    r"Give long_texts='\w+', which it was made with, or": "Give",
    r"the texts as they were": "--data as it was",
    r"another path": "another --out",
}
"""What the remedies of a store that was made of something else say in Python -> at a shell."""

_CONFIG = (
    "Give the configuration that these weights were trained with: --config config.json. The number of heads, among "
    "other things, cannot be inferred from the tensors."
)
_NOTHING = "Give some text; to start from nothing, add --bos."
_OF_THE_FILE = "Correct generation_config.json, or leave --sampler file out."
_NAMES = "`pellucid run --list` lists them all, with -m for another model than the bundled one."

WORDS: Mapping[str, Words] = {
    "attribute empty-text": _NOTHING,
    "attribution-not-finite": "Give a model whose weights are finite.",
    "beams-vocabulary": "Give --num-beams 1.",
    "check path-not-found": "Give the path of the .py or .ipynb file that holds your answers.",
    "config-model-type": (r"pass (?:ignore_config=\[(.*?)\]|config=\{(.*?)\})|give by config= a copy", _of_a_kind),
    "config-needed": _CONFIG,
    "config-not-found": _CONFIG,
    "config-not-implemented": (r"pass ignore_config=\[(.*?)\]", _ignored),
    "compiler-failed": (r"or use numerics='exact'", "or give --numerics exact"),
    "capture corpus-field": "Give the name of the texts by --field.",
    "capture empty-text": "Leave the empty file or line out: it has no tokens, and so no rows.",
    "corpus-engine": ("Give engine='ray', too, or leave workers out", "Give --engine ray, too, or leave --workers out"),
    "corpus-not-shared": "Give a folder that all computers of Ray share, or --engine local.",
    "corpus-misfit": (r".+", _of_a_store),
    "corpus-model": "Give the model that made it: -m MODEL.",
    "corpus-unfinished": "Give the command that wrote it once more: it makes what is missing.",
    "dtype-not-supported": "Add --dtype float32, which converts them.",
    "empty-text": "Give some text.",
    "generate empty-text": _NOTHING,
    "generation-not-implemented": _OF_THE_FILE,
    "head-missing": (
        r"or tie_word_embeddings=true",
        "or by --config a config.json in which tie_word_embeddings is true",
    ),
    "hub-cache-not-writable": "Set HF_HOME to a folder that you may write, on a disk with free space.",
    "hub-gated": (r" or pass token=", " or set HF_TOKEN"),
    "hub-not-found": (r" or pass token=", " or set HF_TOKEN"),
    "hub-refused": (r", endpoint=", ""),
    "hub-offline": "Unset HF_HUB_OFFLINE, or give a folder that holds the model.",
    "kernel-tables": (r"or use numerics='exact'", "or give --numerics exact"),
    "lens empty-text": _NOTHING,
    "lens-of-another-model": "Give a lens that was fitted to this model, or leave --tuned out.",
    "lens-place": "Give --at resid_pre, resid_mid or resid_post, or what is added to them: --at attn.ckpt_attn_out.",
    "log-of-zero": "Add --linear, which measures the norms themselves.",
    "metric-not-finite": (r"Look for weights.*", "Give a model whose weights are finite."),
    "no-compiler": (r"or use numerics='exact'", "or give --numerics exact"),
    "no-tokenizer": "Give the tokenizer: --tokenizer tokenizer.json; or token ids in the text's place: --ids 1,2,3.",
    "norms not-fitted": "Give other texts, or --lags 0, which shows the norms alone.",
    "overflow": "Give --overflow error or --overflow slide.",
    "patch empty-text": "Give some text, of one token or more.",
    "patch no-such-axis": "Leave that axis out of --over, or choose other --names, of which each has every axis.",
    "patch no-tokenizer": "Give the tokenizer: --tokenizer tokenizer.json.",
    "patch texts-misfit": "Choose other --names, such as attn.ckpt_z, or give texts of as many tokens.",
    "sweep-memory": "Give shorter texts, or --names of one block, such as blocks.0.resid_pre.",
    "pad-without-mask": "Give the ids without what fills them up.",
    "pattern-for-a-name": (r"`ckpts\.stack.*", _NAMES),
    "ray-address": "Set RAY_ADDRESS to local to work on this computer alone, start Ray there, or give --engine local.",
    "ray-lost": "Most often memory is short, or a computer has another pellucid: give fewer --workers, or "
    "--engine local. What is whole is kept.",
    "ray-machine": "Use computers of one kind with one version of torch, or --engine local.",
    "ray-workers": "Set OMP_NUM_THREADS to fewer threads before a folder is begun, or give --engine local.",
    "reproduce no-bos": "Give a configuration that has one: --config config.json, with a bos_token_id.",
    "return-sequences": (
        r"Ask for fewer with num_return_sequences=, or for more new tokens",
        "Give fewer --num-beams, or more --max-new-tokens",
    ),
    "run empty-text": _NOTHING,
    "sae-centring": (
        r"Give centred=True if (.*); centred=False if (.*?)\. .*",
        r"Give --sae-centred yes if \1; --sae-centred no if \2. The right one explains more variance.",
    ),
    "sae-input-scale": "Give --sae-scale X, the square root of D over the mean length of what it was trained on.",
    "sae-not-in-the-stream": "Give an autoencoder of the residual stream, or of what is added to it.",
    "sae-place": "Give it: --sae-at blocks.8.resid_pre, for example.",
    "sae-not-supported": (r" If the tensors are of .*", ""),
    "sae-width": "Give the model that the autoencoder was trained on, -m MODEL; --sae-at names another checkpoint.",
    "sampler-setting": "`pellucid generate --help` says what each option takes.",
    "serve no-tokenizer": "Give the tokenizer: --tokenizer tokenizer.json; or leave --text out.",
    "texts-of-unequal-length": (
        r"Give align=.*",
        "Give texts of as many tokens, or --align, which pairs the tokens that both share.",
    ),
    "token-not-in-the-text": "Give a token that the text holds before its last one; ' word' and 'word' are two.",
    "too-long": (r"or pass overflow='slide'", "or add --overflow slide"),
    "unknown-checkpoint": (r"`model\.ckpt_names` lists.*", _NAMES),
}
"""Code of an error, perhaps behind a verb -> the remedy, or a pattern in the library's remedy and what replaces it."""

FILE = re.compile(r"Correct the file, or set model\.generation")
"""How the remedies of a file's settings look, whose codes are those of the arguments."""


def remedy_here(code: str, remedy: str, verb: str = "") -> str:
    """Return a remedy that can be followed on the command line, at a verb."""
    return elsewhere(remedy, _OF_THE_FILE if FILE.search(remedy) else WORDS.get(f"{verb} {code}", WORDS.get(code)))
