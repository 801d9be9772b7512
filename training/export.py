"""Write a trained checkpoint as a Hugging Face folder, with its card and the credits."""

import hashlib
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import card
import corpus
import evaluate
from notice import notice_text

FIRST = (
    "python training/train.py --text ../shared/data/text --out .training \\\n"
    "    --tokens {tokens} --seed {seed} --export {folder}"
)
SECOND = (
    "python training/train.py --text ../shared/data/text --out .training-2 --start {start} \\\n"
    "    --tokens {tokens} --seed {seed} --export {folder}"
)
BUNDLED = "src/pellucid/bundled --notice NOTICE"
ROUND_ONE = ".training/round-1"
"""Where the command of the card puts the weights that the second round starts from."""


def export(run: Path, text: Path, folder: Path, notice: Path | None, config: GPT2Config) -> None:
    """Write config.json, model.safetensors, tokenizer.json, SHA256SUMS, card.json and README.md.

    Args:
        run: Folder of the run: checkpoint, tokenizer, encoded text.
        text: Folder of the text, for the validation texts and the storybooks' credits.
        folder: Where the six files go.
        notice: Where the credits go, if anywhere.
        config: The configuration the checkpoint was trained with.
    """
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(state["model"], config, folder)
    shutil.copyfile(run / "tokenizer.json", folder / "tokenizer.json")
    model, tokenizer = evaluate.load(folder)
    content = {
        "architecture": architecture(config),
        "figures": evaluate.all_figures(model, tokenizer, text),
        "training": training_facts(state),
        "sources": source_facts(run / "tokens"),
        "sha256": write_sums(folder),
    }
    (folder / "card.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card.render(content), encoding="utf-8")
    if notice:
        credit = notice_text(text / "storybooks_ccby_attribution.tsv")
        notice.write_text(credit, encoding="utf-8")


def save_model(weights: dict[str, torch.Tensor], config: GPT2Config, folder: Path) -> None:
    """config.json and model.safetensors: float16, the tied embedding stored once."""
    model = GPT2LMHeadModel(config)
    model.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as name:
        model.half().save_pretrained(name)
        # generation_config.json only repeats what config.json says.
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(Path(name) / file, folder / file)


def write_sums(folder: Path) -> dict[str, str]:
    """Write SHA256SUMS, in the format of the program sha256sum, for the files a model is loaded from."""
    names = ("config.json", "model.safetensors", "tokenizer.json")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}\n" for name in names), encoding="utf-8")
    return sums


def architecture(config: GPT2Config) -> dict[str, int]:
    """The sizes the card quotes."""
    return {
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "context": config.n_positions,
        "vocabulary": config.vocab_size,
    }


def training_facts(state: dict[str, Any]) -> dict[str, Any]:
    """How the checkpoint came about; `shares` are of the rows really trained on."""
    progress, rows = state["progress"], state["batches"]["rows"]
    whole = sum(rows.values())
    return {
        "command": commands(progress),
        "begun_at": progress["begun_tokens"],
        "seed": progress["seed"],
        "tokens": progress["tokens"],
        "steps": progress["step"],
        "seconds": round(progress["seconds"]),
        "shares": {name: count / whole for name, count in rows.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def commands(progress: dict[str, Any]) -> str:
    """What to type for the same run; two commands where it started from the weights of an earlier round."""
    seed, tokens, begun = progress["seed"], progress["planned_tokens"], progress["begun_tokens"]
    if not begun:
        return FIRST.format(tokens=tokens, seed=seed, folder=BUNDLED)
    first = FIRST.format(tokens=round(begun, -6), seed=seed, folder=ROUND_ONE)  # a round ends with a whole batch
    return first + "\n" + SECOND.format(start=ROUND_ONE, tokens=tokens, seed=seed, folder=BUNDLED)


def source_facts(tokens: Path) -> list[dict[str, Any]]:
    """Name, origin, licence and distinct tokens of every source."""
    return [
        {
            "name": source.name,
            "origin": source.origin,
            "licence": source.licence,
            "tokens": len(np.load(tokens / f"{source.name}.npy", mmap_mode="r")),
        }
        for source in corpus.SOURCES
    ]
