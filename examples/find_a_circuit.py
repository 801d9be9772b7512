# %% [markdown]
# # Find a circuit
#
# "When Mary and John went to the shop, John gave a drink to" goes on with Mary. The small model that ships with
# pellucid can do this, also with names that it has met in no such sentence while it was trained (its card says 82.6 %
# of 576 sentences). Which of its four blocks of four heads do it, and how? The task and most of the questions are
# those of Wang et al. (2022, arXiv:2211.00593) about GPT-2 small; the answers here are of this model alone.

# %%
import random

import numpy as np

import pellucid as pl

model = pl.load()
NAMES = [
    *("Ben", "Lucy", "Sue", "Jack", "Emma", "Alice", "Henry", "Anna"),
    *("George", "Paul", "Sara", "Edward", "Polly", "Harry", "Laura", "Martin"),
]
TEMPLATE = "When {a} and {b} went to the {place}, {s} gave a {thing} to"


def prompts(template, count, seed):
    """Prompts, the same with the other name as the subject, the same with three names, and the answers."""
    draws, rows = random.Random(seed), []
    for i in range(count):
        a, b, c, d, e = draws.sample(NAMES, 5)
        fill = {"place": draws.choice(["park", "shop", "school"]), "thing": draws.choice(["ball", "book", "drink"])}
        s, io = (a, b) if i % 2 else (b, a)
        rows.append((
            template.format(a=a, b=b, s=s, **fill), template.format(a=a, b=b, s=io, **fill),
            template.format(a=c, b=d, s=e, **fill), (f" {io}", f" {s}"),
        ))  # fmt: skip
    return (list(side) for side in zip(*rows, strict=True))


clean, swapped, others, answers = prompts(TEMPLATE, 16, seed=0)
metric = pl.metrics.logit_difference(answers)
print(clean[0], "->", answers[0], "\n" + swapped[0], "\n" + others[0])

# %% [markdown]
# ## Can it?
#
# The metric is the logit of the indirect object less that of the subject. On four templates, with names that the
# training held out:

# %%
TEMPLATES = [
    TEMPLATE,
    "While {a} and {b} were at the {place}, {s} handed the {thing} to",
    "Then {a} and {b} had lunch at the {place}. {s} gave a {thing} to",
    "Once {a} and {b} met at the {place}. {s} showed the {thing} to",
]
for template in TEMPLATES:
    texts, _, _, pairs = prompts(template, 64, seed=1)
    batch = model.tokenize(texts)
    found = pl.metrics.logit_difference(pairs)(model.run(batch).detach(), batch)
    print(f"{float((found > 0).double().mean()):.0%} right, {float(found.mean()):5.2f} on average:", template)

# %% [markdown]
# ## Where is it decided?
#
# Values of the clean run are put into the run of the swapped sentence, block by block and token by token; 0 is the
# swapped run, 1 the clean one.

# %%
given = {"over": ("layer", "pos"), "metric": metric}
sweep = pl.patching.sweep(model, clean, swapped, "resid_pre", **given)
named = {"metric": "logit difference, IO - S", "units": "share"}
shares = pl.patching.normalized(sweep).assign_attrs(named)
shares["token"] = (
    "pos",
    ["When", "A", "and", "B", "went", "to", "the", "place", ",", "S2", "gave", "a", "thing", "to"],
)
ax = pl.plot.heatmap(shares)
print(f"clean {sweep.attrs['clean']:.2f}, swapped {sweep.attrs['corrupted']:.2f}")

# %% [markdown]
# Before block 2 all of it is at the second subject, S2; after block 2 nearly all of it is at the last token, so block 2
# moves it there. Only attention moves anything between tokens. Which heads, at the last token?

# %%
heads = pl.patching.sweep(model, clean, swapped, "attn.ckpt_z", over=("layer", "head"), metric=metric, pos=-1)
ax = pl.plot.heatmap(pl.patching.normalized(heads).assign_attrs(named))
print(pl.patching.normalized(heads).to_series().nlargest(4).round(2).to_string())

# %% [markdown]
# Directions drawn at random, of the same length as each patch, do much less:

# %%
drawn = pl.patching.baseline(
    model, clean, swapped, "attn.ckpt_z", over=("layer", "head"), metric=metric, pos=-1, draws=64
)  # fmt: skip
print("share of random directions, largest:", round(float(pl.patching.normalized(drawn).max()), 3))

# %% [markdown]
# ## What do they write?
#
# Which parts add to the difference of the two logits at the last token, the mean over sentences:

# %%
_, ckpts = model.run_with_ckpts(clean)
parts = pl.attribution.direct(ckpts, answers, by="head").isel(pos=-1).mean("batch")
print(parts.to_series().sort_values(key=abs, ascending=False)[:7].round(2).to_string())
print("sum", round(float(parts.sum()), 2))

# %% [markdown]
# ## What do they read?
#
# Attention from the last token, averaged over the sentences in which the indirect object is named first.

# %%
pattern = ckpts.stack("attn.ckpt_pattern")[:, ::2, :, -1].mean(1)
print("head    IO    S1    S2")
for layer, head in ((2, 1), (3, 0), (3, 1), (3, 2), (3, 3)):
    row = pattern[layer, head]
    print(f"{layer}.{head} ", *(f"{float(row[column]):5.2f}" for column in (1, 3, 9)))
movers = pl.heads.name_movers(model, clean, [io for io, _ in answers])
print(movers.to_dataframe().nlargest(4, "attention").round(2).to_string())

# %% [markdown]
# What a head writes of what it reads is in its weights, W_V W_O. The name at a place goes through them and the
# unembedding; is it the first of the sixteen names there, or the last?

# %%
ids = [model.tokenizer.encode(f" {name}")[0] for name in NAMES]
own = [[ids.index(int(row[column])) for column in (1, 3, 9)] for row in ckpts.batch.ids]
for layer, head in ((2, 1), (3, 0), (3, 1), (3, 2), (3, 3)):
    read = ckpts[f"blocks.{layer}.ln1.ckpt_normalized"][:, [1, 3, 9]]
    written = (read @ pl.heads.ov(model, layer, head).dense() @ model.unembed.W_U[:, ids]).detach()
    ranks = [(written[i, j] > written[i, j, name]).sum() for i, row in enumerate(own) for j, name in enumerate(row)]
    print(f"{layer}.{head}  rank of the name that is read: {np.mean(ranks):4.1f} of 0 to 15")
reads = pl.heads.composition(model, "Q").sel(layer_to=3, head_to=0).to_series().dropna()
print("whose output fits the queries of 3.0 best:", reads.nlargest(3).round(3).to_dict())

# %% [markdown]
# 2.1 reads S2, and so does 3.2; 3.0, 3.1 and 3.3 read the first two names, the indirect object more than the subject,
# and copy what they read, as name movers do. 2.1 and 3.2 write against the name that they read. By the weights alone,
# 2.1 is the head whose output the queries of 3.0 read best. Is it looking for the name that came twice, or for the last
# name? In sentences with three names none comes twice:

# %%
_, three = model.run_with_ckpts(others, names="blocks.2.attn.ckpt_pattern")
print("2.1 to the third name:", round(float(three["blocks.2.attn.ckpt_pattern"][:, 1, -1, 9].mean()), 2))

# %% [markdown]
# It reads the last name as well if it is a new one: nothing here detects that a name comes twice, as the circuit of
# GPT-2 small does with its duplicate-token and induction heads.
#
# ## Paths
#
# Base is the clean run; a head takes its value of the sentence with three names, and every other head stays as it is.
# First what each head tells the logits, then what it tells the queries and the values of 3.0, and the keys and values
# of 2.1.

# %%
READERS = {
    "logits": "logits",
    "queries of 3.0": ("attn.ckpt_q", {"layer": 3, "head": 0}),
    "values of 3.0": ("attn.ckpt_v", {"layer": 3, "head": 0}),
    "queries of 2.1": ("attn.ckpt_q", {"layer": 2, "head": 1}),
    "keys of 2.1": ("attn.ckpt_k", {"layer": 2, "head": 1}),
    "values of 2.1": ("attn.ckpt_v", {"layer": 2, "head": 1}),
}
for what, receiver in READERS.items():
    paths = pl.patching.path(
        model, clean, others, senders=("attn.ckpt_z", {}), receivers=receiver, over=("layer", "head"), metric=metric,
        direction="noise",
    )  # fmt: skip
    effect = (paths - paths.attrs["clean"]).to_series().dropna()
    strongest = effect.reindex(effect.abs().sort_values(ascending=False).index)[:3]
    print(f"{what:15}", *(f"{layer}.{head} {value:6.2f}  " for (layer, head), value in strongest.items()))

# %% [markdown]
# The head that matters most to the logits is 3.0. What it is told that matters comes from 2.1 and goes into its
# queries: 2.1 says which name not to look for, as the S-inhibition heads of GPT-2 small do. No single head tells 2.1
# anything that depends on which names these are and matters.
#
# ## Taken out
#
# Each head and each MLP replaced by its mean over sentences with three names:

# %%
out = {"how": "mean", "reference": others, "metric": metric}
without = pl.patching.ablate(model, clean, "attn.ckpt_z", over=("layer", "head"), **out)
without_mlp = pl.patching.ablate(model, clean, "mlp.ckpt_mlp_out", over=("layer",), **out)
print(f"plain {without.attrs['plain']:.2f}")
print(without.to_series().unstack().round(2).to_string())
print("MLPs", *(f"{float(value):.2f}" for value in without_mlp))

# %% [markdown]
# ## Estimates, and what they are worth
#
# Gradients estimate all patches at once. Each estimate is compared with the patches themselves: Pearson's correlation
# over every cell.

# %%
METHODS = {
    "attribution patching": {},
    "along the node, 5": {"steps": 5},
    "along the inputs, 5": {"steps": 5, "along": "inputs"},
    "RelP": {"rules": "relp"},
}
PLACES = {
    "resid_pre": ("layer", "pos"), "attn.ckpt_attn_out": ("layer", "pos"), "mlp.ckpt_mlp_out": ("layer", "pos"),
    "attn.ckpt_z": ("layer", "head"),
}  # fmt: skip
print(f"{'':22}", *(f"{name:>20}" for name in PLACES))
truth = {n: pl.patching.sweep(model, clean, swapped, n, over=over, metric=metric) for n, over in PLACES.items()}
for method, options in METHODS.items():
    row = []
    for name, over in PLACES.items():
        guess = pl.attribution.gradient(model, clean, swapped, name, over=over, metric=metric, **options)
        row.append(np.corrcoef(guess.values.ravel(), (truth[name] - sweep.attrs["corrupted"]).values.ravel())[0, 1])
    print(f"{method:22}", *(f"{value:20.3f}" for value in row))

# %% [markdown]
# All but RelP nearly agree with the patches. RelP, which did better than attribution patching for the residual stream
# and the MLPs of GPT-2 small (Jafari et al. 2025), does worse on this model and task: how good an estimate is has to be
# measured where it is used, and `check=` does it.
#
# A query or a key acts through the softmax, which a gradient takes for a line. AtP's correction (`rules="atp"`) puts
# the value in and recomputes the pattern:

# %%
for name in ("attn.ckpt_q", "attn.ckpt_k"):
    over = {"over": ("layer", "head"), "metric": metric}
    true = pl.patching.sweep(model, clean, swapped, name, **over) - sweep.attrs["corrupted"]
    for rules in ("plain", "atp"):
        guess = pl.attribution.gradient(model, clean, swapped, name, rules=rules, **over)
        largest = f"largest error {float(abs(guess - true).max()):.2f} of {float(abs(true).max()):.2f}"
        print(f"{name} {rules:6}{np.corrcoef(guess.values.ravel(), true.values.ravel())[0, 1]:6.3f}, {largest}")

# %% [markdown]
# Edge attribution patching estimates every edge between two parts at once. The strongest of 479, and the share of the
# metric that the strongest keep when all others carry the values of the sentence with three names:

# %%
edges = pl.attribution.edges(model, clean, others, metric=metric)
for (sender, receiver), score in edges.to_series().dropna().nlargest(8).items():
    print(f"{score:5.2f}  {sender} -> {receiver}")
kept = pl.circuits.curve(
    model, edges, clean, others, metric=metric, value="resample", shares=[0.02, 0.05, 0.1, 0.2]
)  # fmt: skip
print(*(f"{int(n)} edges: {float(share):.2f} " for n, share in zip(kept["count"], kept, strict=True)))

# %% [markdown]
# MLP 0 tells the values of 2.1 and 3.2 which tokens there are, and 3.0 tells the logits. The edge from 2.1 to the
# queries of 3.0, the strongest that the paths showed, is not among these eight: it acts through a softmax, which the
# gradient takes for a line. Ten edges keep little, about fifty most of the metric.
#
# ## A circuit, under every choice
#
# Without MLP 0 or head 2.1 nothing is left, and without 3.0, 3.2 or MLP 3 less. These five, with all others replaced
# by their values of the sentence with three names:

# %%
circuit = pl.circuits.Circuit(nodes=["blocks.0.mlp", (2, 1), (3, 0), (3, 2), "blocks.3.mlp"])
report = pl.circuits.evaluate(model, circuit, clean, others, metric=metric, value="resample", subsets=20)
print(report)
print({part: round(value, 2) for part, value in report.minimality.items()})

# %% [markdown]
# Five of twenty nodes keep 92 % of the metric, and twenty random circuits of the size 10 % at most. It is not complete:
# without some of its parts the whole model still differs from it by 1.3 of 8.3 logits, so others help. Every node
# matters somewhere: the least, 3.2, for 1.3 logits. The range by text says little, because a text on which the sentence
# with three names scores as high as the clean one has a scale of almost nothing; so read the median.
#
# Miller et al. (2024) name six choices that move such a number. All of them, with medians over texts:

# %%
swept = pl.circuits.across(model, circuit, clean, others, metric=metric, components=["heads", ["heads", "mlps"]])
table = swept.isel(position=0).median("batch").stack(row=("value", "direction")).dropna("row", how="all")
for row in table.row.values:
    print(f"{row[0]:9}{row[1]:9}", *(f"{float(share):7.2f}" for share in table.sel(row=tuple(row)).values.ravel()))

# %% [markdown]
# Columns are by nodes with heads ablated, with heads and MLPs, then the same by edges. Resampled values say that the
# circuit is all of it (0.91 to 1.02); means over all tokens, or zeros, say that it is a third at most. It was chosen by
# resampling, and what is said of it holds for that. On other templates, which it was not chosen on:

# %%
for template in TEMPLATES[1:]:
    texts, _, three_names, pairs = prompts(template, 16, seed=2)
    one = pl.circuits.evaluate(
        model, circuit, texts, three_names, metric=pl.metrics.logit_difference(pairs), value="resample", subsets=1,
        random=0,
    )  # fmt: skip
    print(f"{one.faithfulness:5.2f} (median by text {np.median(one.by_text):.2f})", template)

# %% [markdown]
# ## What can be said
#
# In this model the last name is read by 2.1 and ruled out, in the queries of 3.0, which copies one of the names that
# are left; 3.2 and MLP 3 add to it. 2.1 does not wait for a name to come twice, so this is a shorter way to the same
# answer than the one that was found in GPT-2 small. Five nodes carry it, 92 % on the sentences on which they were
# chosen and 81 to 91 % on three other templates, if values are resampled. How 2.1 knows the last name was not found
# here.
