# %% [markdown]
# # Are these two models the same?
#
# One model comes from `transformers`, one is made of glass. They have other names for their parts, other shapes of
# weights and other code. This notebook shows how to look at the parameters of both, and how to prove that they are
# the same model instead of finding them close. It runs offline with the small model that ships with pellucid; for
# GPT-2 itself, change the line `NAME = "bundled"`.

# %%
import matplotlib.pyplot as plt
import torch

import pellucid as pl

NAME = "bundled"  # "gpt2-small" for OpenAI's weights (downloads them)

# %%
glass = pl.load(NAME)
theirs = pl.to_hf(glass).transformer.eval()  # a transformers GPT2Model: no head, so its output is not logits
tokens = glass.tokenize("Once upon a time there was a little girl named Lily.")
print(tokens.strings[0])

# %% [markdown]
# ## Outputs
#
# `GPT2Model` ends with its final LayerNorm. The head of GPT-2 is its embedding, so the logits are one product away.

# %%
with torch.no_grad():
    hidden = theirs(tokens.ids)[0]
    their_logits = hidden @ theirs.wte.weight.T
    logits, ckpts = glass.run_with_ckpts(tokens)
print(their_logits.shape, logits.shape)
print(pl.compare(their_logits, logits))

# %% [markdown]
# That sentence allows for a tolerance. `@` may sum in another order than the models do, which would show in the last
# bits, here as the largest difference; the same operation on the same tensors leaves nothing.

# %%
print(pl.compare(their_logits, logits).max_abs)
print(torch.equal(torch.nn.functional.linear(hidden, theirs.wte.weight), logits))

# %% [markdown]
# ## Parameters, one by one
#
# What is called `wte.weight` there is `embed.W_E` here. The queries, keys and values are one matrix there; here each
# head has its own, as live views of the same memory.

# %%
print([name for name, _ in theirs.wte.named_parameters()], [name for name, _ in glass.embed.named_parameters()])
print(pl.compare(theirs.wte.weight, glass.embed.W_E).bit_equal)
print(theirs.h[0].attn.c_attn.weight.shape, "->", glass.blocks[0].attn.W_Q.shape)

# %% [markdown]
# ## All of it, by value
#
# `compare` finds out which parameter is which from the numbers themselves, runs both models, compares every
# checkpoint that both show, and does it again in float64 to tell rounding from error.

# %%
report = pl.compare(glass, theirs, inputs=tokens.ids)
assert report.verdict == "identical"
print(report)

# %% [markdown]
# ## A difference that is hard to see
#
# The same weights, but one LayerNorm of one block has another epsilon. The text that the model writes does not
# change, and a tolerance of 1e-3 would not notice. The last picture shows, on a logarithmic axis, the error at each
# checkpoint: nothing before the epsilon, something at every point after it.

# %%
wrong = pl.to_hf(glass).eval()
wrong.transformer.h[1].ln_2.eps = 1e-6
with torch.no_grad():
    changed = wrong(tokens.ids).logits
print("largest difference", float((changed - logits).abs().max()))
print("next tokens differ at", int((changed.argmax(-1) != logits.argmax(-1)).sum()), "positions")

# %%
report = pl.compare(glass, wrong, inputs=tokens.ids)
print(report.first_divergence)
assert report.verdict == "different"
assert "epsilon" in report.first_divergence.cause

# %%
rows = [row for row in report.checkpoints if row.fp64 is not None]
with pl.plot.theme("light") as theme:
    figure, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
    ax.plot(range(len(rows)), [max(row.fp64, 1e-17) for row in rows], ".", color=theme.marks[0])
    ax.set(yscale="log", xlabel="checkpoint, in execution order", ylabel="relative error in float64")
    ax.set_title(f"first divergence: {report.first_divergence.where}")
