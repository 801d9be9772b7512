# %% [markdown]
# # Tied embeddings
#
# The output head of GPT-2 is its token embedding: one matrix, used twice. So replacing the head by a layer of the
# same size adds parameters, and what saving and loading then do is decided in several places that can disagree. This
# notebook makes all of it visible. It runs offline with the small model that ships with pellucid; for GPT-2 itself,
# change the line `NAME = "bundled"`.

# %%
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

import pellucid as pl

NAME = "bundled"  # "gpt2-small" for OpenAI's weights (downloads them)

# %% [markdown]
# ## One matrix, two names

# %%
glass = pl.load(NAME)
model = pl.to_hf(glass)
print(model.lm_head.weight is model.transformer.wte.weight)
print(model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr())
print([name for name in model.state_dict() if "wte" in name or "lm_head" in name])
print(glass.unembed.W_U.data_ptr() == glass.embed.W_E.data_ptr(), list(glass.unembed.parameters()))

# %% [markdown]
# Counted once for each tensor and once for each name:

# %%
audit = pl.audit_ties(model)
print(audit.unique, audit.by_name)
print(audit.after_reload.survives, audit.after_reload.reason)

# %% [markdown]
# The same as a picture: the hatched bar is the head, whose numbers are the embedding's.

# %%
ax = pl.plot.parameters(pl.count_parameters(glass))

# %% [markdown]
# ## Replace the head
#
# The same shape, but a tensor of its own. Wrapped in a `Sequential` it also has a name that nobody looks for, and
# that is what the audit foresees before anything is saved.

# %%
replaced = pl.to_hf(glass)
width, vocabulary = glass.config.n_embd, glass.config.vocab_size
replaced.lm_head = nn.Sequential(nn.Linear(width, vocabulary, bias=False))
audit = pl.audit_ties(replaced)
print(audit.unique, audit.by_name)
print(audit.after_reload.survives, audit.after_reload.reason)
for problem in audit.problems:
    print("-", problem)
assert audit.after_reload.survives is False

# %% [markdown]
# Tied again by hand, the count is right and the memory is shared, but saving refuses.

# %%
replaced.lm_head[0].weight = replaced.transformer.wte.weight
audit = pl.audit_ties(replaced)
print(audit.unique, audit.after_reload.survives, audit.after_reload.reason)

# %% [markdown]
# `replace_head` does what was meant.

# %%
fixed = pl.to_hf(glass)
pl.replace_head(fixed, nn.Linear(width, vocabulary, bias=False), tie=True)
audit = pl.audit_ties(fixed)
print(audit.unique, audit.after_reload.survives)
assert audit.after_reload.survives

# %% [markdown]
# ## Gradients from both uses
#
# The shared tensor learns from being looked up and from making the logits: rows of tokens that do not occur in the
# text have a gradient, too.

# %%
ids = glass.tokenize("Once upon a time").ids
glass.train().loss(ids).backward()
gradient = glass.grad("embed.W_E")
seen = torch.zeros(vocabulary, dtype=torch.bool)
seen[ids[0]] = True
print("rows with a gradient:", int(gradient.any(-1).sum()), "of", vocabulary)
print("of tokens that occur:", int(gradient[seen].any(-1).sum()), "others:", int(gradient[~seen].any(-1).sum()))
assert gradient[~seen].any()

# %% [markdown]
# ## On disk
#
# Two layers that share their tensors, and two that do not, written three ways.


# %%
class Two(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a = nn.Linear(100, 100)
        self.b = self.a if tied else nn.Linear(100, 100)


sizes = {}
with tempfile.TemporaryDirectory() as folder:
    for tied in (True, False):
        two = Two(tied)
        torch.save(two.state_dict(), Path(folder) / "two.bin")
        save_model(two, str(Path(folder) / "two.safetensors"))
        sizes["tied" if tied else "untied"] = [
            (Path(folder) / name).stat().st_size for name in ("two.bin", "two.safetensors")
        ]
    glass.eval().save_pretrained(Path(folder) / "model")
    written = (Path(folder) / "model" / "model.safetensors").stat().st_size
print("torch.save, safetensors:", sizes)
print("ours:", written, "bytes for", pl.count_parameters(glass).unique, "parameters, the tied matrix once")
assert sizes["tied"][0] < 0.6 * sizes["untied"][0]
