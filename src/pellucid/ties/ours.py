"""What a save and a reload would do to a model of ours."""

from __future__ import annotations

import torch

from pellucid.run.model import CkptedTransformer
from pellucid.ties.predict import AfterReload, HeadFate, Loss, changed_settings, sentence
from pellucid.ties.subject import OUR_EMBED, OUR_HEAD


def predict_ours(model: CkptedTransformer) -> AfterReload:
    """The fate of a `CkptedTransformer`, whose head is written if the configuration says untied, and only then."""
    expected = model.schema.stored
    stored = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = sorted(name for name in {*stored, *expected} if stored.get(name) != expected.get(name))
    if differing:
        return _fate(None, None, f"save_pretrained raises: {differing[0]} is not as the configuration says")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        again = CkptedTransformer(model.config)
    changed = tuple(changed_settings(dict(model.named_modules()), dict(again.named_modules())))
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if changed:
        return _fate(False, model.config.tie_word_embeddings, sentence(changed), size, changed)
    dtype = model.embed.W_E.dtype
    kept = "" if dtype == torch.float32 else f'; read it with dtype="stored" to compute in {dtype} again'
    if model.config.tie_word_embeddings:
        return _fate(True, True, f"{OUR_EMBED} is written once, and the head is tied to it{kept}", size)
    return _fate(True, False, f"{OUR_HEAD} and {OUR_EMBED} are both written and read{kept}", size)


def _fate(
    survives: bool | None, tied: bool | None, reason: str, size: int | None = None, lost: tuple[Loss, ...] = ()
) -> AfterReload:
    return AfterReload(survives, tied, reason, (HeadFate(OUR_HEAD, survives, tied, reason),), lost, size)
