# %% [markdown]
# # A sparse autoencoder from a corpus
#
# A residual stream has 256 numbers and stands for more than 256 things. A sparse autoencoder writes it as a sum of few
# features out of many. This notebook captures the stream of a corpus, trains a small autoencoder on it in plain
# PyTorch, looks at what its features stand for, and puts it into the model with the error that it leaves. It runs
# offline with the small model that ships with pellucid, in less than a minute.

# %%
import itertools
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pellucid as pl

model = pl.load()
NAME = "blocks.2.resid_post"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A corpus
#
# Small stories, made of parts. Any iterable of texts would do; `pl.corpus.read` reads them from files.

# %%
people, animals = ["Tom", "Lily", "Ben", "Mia", "Sam"], ["cat", "dog", "bird", "frog", "bear"]
places, things = ["park", "garden", "house", "forest"], ["ball", "hat", "book", "cake", "boat"]
stories = [
    f"Once upon a time there was a {animal} in the {place}. {person} had a red {thing}. "
    f'"Look at my {thing}," said {person}. The {animal} was very happy and they played in the {place}.'
    for person, animal, place, thing in itertools.product(people, animals, places, things)
]
random.Random(0).shuffle(stories)
train, held_out = stories[:240], stories[240:250]

# %% [markdown]
# ## Captured once
#
# The values lie on disk, a row for each token: more than fits into memory is no problem, and a call that was killed is
# made again and goes on.

# %%
store = pl.corpus.capture(model, train, NAME, folder / "acts.zarr")
print(store)
print(store.verify(rows=20))

# %% [markdown]
# ## Trained in plain PyTorch
#
# `pl.sae.SparseAutoencoder` holds parameters. It keeps the 8 largest of 512 activations at each token; decoder
# directions are kept at length 1.

# %%
torch.manual_seed(0)
FEATURES = 512
first = next(iter(store.loader(2048, seed=0)))[NAME]
directions = torch.nn.functional.normalize(torch.randn(FEATURES, first.shape[1]), dim=-1)
start = {"W_enc": directions.T.clone(), "b_enc": torch.zeros(FEATURES), "W_dec": directions, "b_dec": first.mean(0)}
config = pl.sae.SaeConfig(NAME, "topk", k=8, about={"model_name": "bundled"})
sae = pl.sae.SparseAutoencoder(config, start)

optimizer, losses = torch.optim.Adam(sae.parameters(), lr=2e-3), []
for epoch in range(6):
    for batch in store.loader(512, seed=epoch):
        x = batch[NAME]
        loss = (sae(x) - x).square().mean() / (x - x.mean(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
        losses.append(loss.item())

# %%
figure, axes = plt.subplots(figsize=(3.4, 2), layout="constrained")
axes.plot(losses)
axes.set(xlabel="step", ylabel="unexplained variance", ylim=(0, 1))

# %% [markdown]
# ## How good is it?
#
# On stories that it was not trained on. The first token is left out: its stream is tens of times as long as the others.

# %%
print(pl.sae.evaluate(sae, model, held_out, skip=1))

# %% [markdown]
# ## What its features stand for
#
# Both are read from the store, without running the model again: at how many tokens each feature is active, and the
# tokens at which one is most active.

# %%
shares = pl.corpus.densities(store, NAME, encode=sae.encode)
ax = pl.plot.densities(shares)

# %%
table = pl.corpus.examples(store, NAME, encode=sae.encode, count=50, around=0)
animal_words = {f" {animal}" for animal in animals}
on_animals = [
    unit for unit in shares.unit.values if set(table.token.sel(unit=unit, offset=0).values.tolist()) <= animal_words
]
feature = int(max(on_animals, key=lambda unit: float(shares.density.sel(unit=unit))))
print(f"{len(on_animals)} features are active at animals first of all; one of them:")
ax = pl.plot.examples(pl.corpus.examples(store, NAME, [feature], encode=sae.encode, count=5, around=5))

# %% [markdown]
# ## In the model, with its error
#
# An edit of features leaves the error in its place: as long as no feature changes, the run is the plain one, to the
# last bit. Then one feature is taken away.

# %%
text = f"Once upon a time there was a little{table.token.sel(unit=feature, rank=0, offset=0).item()}"
plain = model.run(text)
print("equal to the bit:", torch.equal(plain, model.run(text, edits=sae.scale(range(FEATURES), 1.0))))
without = model.run(text, edits=sae.zero([feature]))
for name, logits in (("plain", plain), ("without the feature", without)):
    likely = logits[0, -1].softmax(-1).topk(3)
    words = [f"{model.tokenizer.decode([i])} {p:.0%}" for i, p in zip(likely.indices, likely.values, strict=True)]
    print(f"{name}: {text!r} goes on with", words)

# %% [markdown]
# ## In the viewer
#
# Its features stand on the screen of neurons, along the text; and the run without one beside the plain one shows where
# in the network what it stood for is missed. In a notebook `pl.view(...)` as the last line of a cell shows the page;
# here it is saved as one file.

# %%
view = pl.view(model, text, edits=[sae.zero([feature])], sae=sae)
view.save(folder / "without_a_feature.html")
sae.save(folder / "sae")
print(sorted(path.name for path in folder.iterdir()))
