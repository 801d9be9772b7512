"""What to do about a head or an embedding that does not come back: instructions that can be followed as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pellucid.ties.subject import Subject

PLAIN_HEAD = "torch.nn.Linear(config.n_embd, config.vocab_size, bias=False)"
_EDIT = "t = safetensors.torch.load_file(path); {}; safetensors.torch.save_file(t, path, metadata={{'format': 'pt'}})"
"""How to change a weights file, `path`, from Python."""


def for_sizes(subject: Subject) -> str:
    """For tensors that do not fit the configuration."""
    tensors = {one.name: one.tensor for one in subject.named}
    ends = [name for name in tensors if name.endswith(("wte.weight", "lm_head.weight"))]
    rows = {name: tensors[name].size(0) for name in ends}
    if len(set(rows.values())) < 2:
        fits = f" vocab_size is {next(iter(rows.values()))} then." if rows and subject.kind == "checkpoint" else ""
        return f"Make the configuration's sizes those of the tensors.{fits}"
    most, least = max(rows.values()), min(rows.values())
    said = " and ".join(f"{name} has {count} rows" for name, count in rows.items())
    if subject.kind == "hf":
        return f"No vocab_size fits both: {said}. model.resize_token_embeddings({most}) gives both {most}."
    name = next(name for name in ends if rows[name] == least)
    longer = f"t[{name!r}] = torch.nn.functional.pad(t[{name!r}], (0, 0, 0, {most - least}))"
    return (
        f"No vocab_size fits both: {said}. Fill up {name} with {most - least} rows of zeros, in Python by "
        f"`{_EDIT.format(longer)}`, and set vocab_size to {most} and tie_word_embeddings to false in config.json."
    )


def for_dropped(names: Sequence[str], subject: Subject, head: str | None) -> str:
    """For tensors that the class has no name for."""
    place = (head or "lm_head.weight").rpartition(".")[0]
    tensors = {one.name: one.tensor for one in subject.named}
    checkpoint = subject.kind == "checkpoint"
    if set(names) == {f"{place}.bias"}:
        give_up = f"delete {names[0]} from the file" if checkpoint else f"set model.{names[0]} = None"
        return (
            f"To keep it, {'read' if checkpoint else 'save and read'} the model with a subclass of its class whose "
            f"__init__ sets self.{place} = torch.nn.Linear(config.n_embd, config.vocab_size), which has a bias. "
            f"To give it up, {give_up}."
        )
    inside = [name for name in names if name.startswith(f"{place}.")]
    if inside and checkpoint:
        renamed, rename = _only_matrix(inside, tensors), ""
        if renamed is not None:
            edit = _EDIT.format(f"t[{f'{place}.weight'!r}] = t.pop({renamed!r})")
            rename = (
                f" It is a plain head inside, so it may be renamed instead, in Python by `{edit}`, with "
                "tie_word_embeddings false in config.json."
            )
        return (
            f"To keep it, read the file with a subclass of the class whose __init__ sets self.{place} to the modules "
            f"that were saved. Before another save, pl.replace_head(model, {PLAIN_HEAD}, tie=False) puts a head there "
            f"that GPT2LMHeadModel knows.{rename}"
        )
    if checkpoint:
        return "Read it with the class that wrote it, or delete these names from the file."
    return (
        "To keep them, save and read the model with a subclass of its class whose __init__ makes them. To give them "
        "up, take them out of the model."
    )


def for_replaced(names: Sequence[str], subject: Subject, head: str | None) -> str:
    """For modules that the class builds otherwise."""
    place = (head or "lm_head.weight").rpartition(".")[0]
    kept = _only_matrix(names, {one.name: one.tensor for one in subject.named})
    if kept is not None and kept.startswith(f"{place}.") and len(names) == 1:
        inner = kept.rpartition(".")[0]
        return (
            f"pl.replace_head(model, model.get_submodule({inner!r}), tie=False) keeps its matrix in a head that the "
            "class builds; a subclass whose __init__ makes this head keeps all of it."
        )
    if head is not None and any(name.startswith(f"{place}.") for name in names):
        return (
            f"To keep it, save and read the model with a subclass of its class whose __init__ makes this head. To give "
            f"it up, pl.replace_head(model, {PLAIN_HEAD}, tie=...) puts one there that the class builds."
        )
    return "Save and read the model with a subclass of its class whose __init__ makes these modules."


def _only_matrix(names: Sequence[str], tensors: Mapping[str, Tensor]) -> str | None:
    """The one name among these, if it is the weight of a plain head."""
    return names[0] if len(names) == 1 and names[0] in tensors and tensors[names[0]].dim() == 2 else None
