"""What a save and a reload would do to a model of ours."""

from __future__ import annotations

from torch import Tensor

from pellucid.model import CkptedTransformer
from pellucid.ties.predict import AfterReload, HeadFate, Loss
from pellucid.ties.subject import OUR_EMBED, OUR_HEAD
from pellucid.transformer import Unembedding, stored_shapes
from pellucid.weights.importing import same_numbers


def predict_ours(model: CkptedTransformer) -> AfterReload:
    """The fate of a `CkptedTransformer`, whose head is written if the configuration says untied, and only then."""
    config = model.config
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    absent = [name for name in stored_shapes(config) if name not in tensors]
    if absent:
        return _fate(None, None, f"save_pretrained raises: the configuration promises {absent[0]}, which is not there")
    wrong = [n for n, shape in stored_shapes(config).items() if tuple(tensors[n].shape) != shape]
    if wrong:
        return _fate(False, None, f"{wrong[0]} has another shape than the configuration says, so reading raises")
    writes = [tensors[name] for name in stored_shapes(config)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in writes)
    extra = [name for name in tensors if name not in stored_shapes(config) and name != OUR_HEAD]
    if type(model.unembed) is not Unembedding or extra:
        what = extra[0] if extra else f"the head, a {type(model.unembed).__name__},"
        return _fate(False, config.tie_word_embeddings, f"{what} is not GPT-2's, and is dropped", size)
    if not config.tie_word_embeddings:
        return _fate(True, False, f"{OUR_HEAD} and {OUR_EMBED} are both written and read", size)
    if model.unembed.tied:
        return _fate(True, True, f"{OUR_EMBED} is written once, and the head is tied to it", size)
    same = same_numbers(model.unembed.W_U.detach().t(), model.embed.W_E.detach())
    what = "is equal to the embedding and becomes it" if same else "is dropped, and the head becomes the embedding"
    return _fate(same, True, f"the configuration says tied: {OUR_HEAD} {what}", size)


def _fate(survives: bool | None, tied: bool | None, reason: str, size: int | None = None) -> AfterReload:
    lost = (Loss(OUR_HEAD, "not ours", reason),) if survives is False else ()
    return AfterReload(survives, tied, reason, (HeadFate(OUR_HEAD, survives, tied, reason),), lost, size)
