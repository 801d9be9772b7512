# %% [markdown]
# # Decoding side by side
#
# A language model gives a distribution over the next token; a text is made of choices. This notebook puts the ways of
# choosing beside each other: what each does to one distribution, what texts come of it, and how likely the model itself
# finds them. It runs offline with the small model that ships with pellucid; for GPT-2 itself, change the line
# `NAME = "bundled"`.

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch

import pellucid as pl

NAME = "bundled"  # "gpt2-small" for OpenAI's weights (downloads them)
model = pl.load(NAME)
PROMPT = "One day, Lily found a"


def show(title: str, text: str) -> None:
    """Print a text under its title, indented."""
    print(title, textwrap.indent(text, "    "), sep="\n", end="\n\n")


# %% [markdown]
# ## One distribution, stage by stage
#
# A sampler is a row of small functions on logits. `explain` shows the distribution after each: the temperature sharpens
# it, `top_k` cuts the tail at a number, `top_p` at a probability.

# %%
logits = model.next_token_logits(PROMPT)[0]
sampler = pl.Sampler(temperature=0.7, top_k=8, top_p=0.8)
stages = sampler.explain(logits)
shown = stages["model"].topk(12).indices
labels = [model.tokenizer.decode(token) for token in shown]

with pl.plot.theme("light"):
    figure, axes = plt.subplots(1, len(stages), figsize=(7, 2.4), sharey=True, layout="constrained")
    for ax, (name, probabilities) in zip(axes, stages.items(), strict=True):
        ax.barh(range(len(shown)), probabilities[shown].numpy(), color=[0.0, 0.45, 0.7])
        ax.set(title=name, xlim=(0, float(stages["top_p"].max()) * 1.05), xlabel="probability")
        ax.set_yticks(range(len(shown)), labels)
    axes[0].invert_yaxis()
print({name: int((probabilities > 0).sum()) for name, probabilities in stages.items()}, "tokens left")

# %% [markdown]
# ## The same prompt, decoded in nine ways
#
# Behind each text stands the mean log-probability of its new tokens, in the model's own distribution. Greedy decoding
# and beam search find likely texts; heat finds unlikely ones.

# %%
METHODS = {
    "greedy": {},
    "beam search, 4": {"num_beams": 4},
    "temperature 0.5": {"sampler": pl.Sampler(temperature=0.5)},
    "temperature 1": {"sampler": pl.Sampler()},
    "temperature 1.5": {"sampler": pl.Sampler(temperature=1.5)},
    "top k, 10": {"sampler": pl.Sampler(top_k=10)},
    "top p, 0.9": {"sampler": pl.Sampler(top_p=0.9)},
    "min p, 0.1": {"sampler": pl.Sampler(min_p=0.1, temperature=1.5)},
    "typical, 0.7": {"sampler": pl.Sampler(typical_p=0.7)},
}
texts = {
    name: model.generate(PROMPT, max_new_tokens=40, end_ids=(), seed=1 if "sampler" in options else None, **options)
    for name, options in METHODS.items()
}
for name, out in texts.items():
    show(f"{name} ({out.logprobs.mean():.2f} nats a token)", out.text)

# %% [markdown]
# ## How likely the model finds each token
#
# Human text is not a walk along the peaks (Holtzman et al. 2019): a likely text is more regular than what people write.
# Each line is one text, smoothed over five tokens.

# %%
KERNEL = np.ones(5) / 5
with pl.plot.theme("light") as theme:
    figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
    for name, colour in zip(("greedy", "top p, 0.9", "temperature 1.5"), theme.marks, strict=False):
        ax.plot(np.convolve(texts[name].logprobs[0].numpy(), KERNEL, "valid"), color=colour, label=name)
    ax.set(xlabel="new token", ylabel="log-probability (nats)")
    ax.legend(loc="lower left")

# %% [markdown]
# ## Temperature between repetition and nonsense
#
# For each temperature 8 texts: the share of pairs of tokens that are new in their text, and the mean log-probability.


# %%
def distinct_pairs(row: torch.Tensor) -> float:
    """The share of different pairs of neighbouring tokens."""
    pairs = list(zip(row.tolist(), row.tolist()[1:], strict=False))
    return len(set(pairs)) / len(pairs)


temperatures = (0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0)
found = []
for temperature in temperatures:
    out = model.generate(
        PROMPT,
        max_new_tokens=60,
        end_ids=(),
        num_return_sequences=8,
        sampler=pl.Sampler(temperature=temperature),
        seed=0,
    )
    found.append((np.mean([distinct_pairs(row) for row in out.new_ids]), float(out.logprobs.mean())))
distinct, likelihood = np.array(found).T

with pl.plot.theme("light") as theme:
    figure, ax = plt.subplots(figsize=(4, 2.6), layout="constrained")
    ax.plot(temperatures, distinct, "o-", color=theme.marks[0])
    ax.set(xlabel="temperature", ylim=(0, 1.05))
    ax.set_ylabel("share of distinct pairs", color=theme.marks[0])
    other = ax.twinx()
    other.spines["right"].set_visible(True)
    other.plot(temperatures, likelihood, "s--", color=theme.marks[1])
    other.set_ylabel("log-probability (nats a token)", color=theme.marks[1])
assert likelihood[0] > likelihood[-1]

# %% [markdown]
# ## Against repetition
#
# A likely text comes back to the same words. Penalties and forbidden n-grams keep it from doing so; a penalty that
# grows with every occurrence also drives it away from full stops and commas, and soon to the end of the story.

# %%
for options in ({}, {"repetition_penalty": 1.3}, {"frequency_penalty": 0.5}, {"no_repeat_ngram_size": 3}):
    out = model.generate(PROMPT, max_new_tokens=60, end_ids=(), sampler=pl.Sampler(temperature=0, **options))
    show(f"{options or 'plain'}: {distinct_pairs(out.new_ids[0]):.0%} distinct pairs", out.text)

# %% [markdown]
# ## Beam search
#
# A wider search finds texts that the model finds more likely as a whole: mostly, for it is a search and not a proof.

# %%
for width in (1, 2, 4, 8):
    out = model.generate(PROMPT, max_new_tokens=20, num_beams=width, end_ids=())
    show(f"{width} beams: {float(out.logprobs.sum()):.2f} nats", out.text)

# %% [markdown]
# ## Inside, while it writes
#
# Checkpoints are captured at every step. Here is the head that attends most to the token before, over the whole text.

# %%
out = model.generate(PROMPT, max_new_tokens=12, names="blocks.*.attn.ckpt_pattern")
patterns = out.ckpts.stack("attn.ckpt_pattern")[:, 0]
scores = patterns.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)
layer, head = divmod(int(scores.argmax()), scores.size(1))
with pl.plot.theme("light"):
    ax = pl.plot.attention(patterns[layer, head], tokens=out.ckpts.batch.strings[0])
print(f"head {head} of block {layer}: {float(scores.max()):.0%} on the token before")
