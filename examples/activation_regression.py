# %% [markdown]
# # Can attention's output be predicted?
#
# Every attention layer adds a vector to the residual stream of each token. How long is it, and does its length follow
# from those of the tokens before? This notebook captures the vectors, looks at their norms, and fits a regression of
# each norm on the two before it, for every layer at once. It runs offline with the small model that ships with
# pellucid; for GPT-2 itself, change the line `NAME = "bundled"`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm

import pellucid as pl

NAME = "bundled"  # "gpt2-small" for OpenAI's weights (downloads them)
model = pl.load(NAME)
text = (
    "Once upon a time there was a fisherman who lived with his wife in a small house by the sea. Every morning he went "
    "out to fish. One day he caught a golden fish that could speak. It said, let me go, and I will give you what you "
    "want. The fisherman was surprised, and put the fish back into the water. Then he went home and told his wife."
)

# %% [markdown]
# ## What each attention layer adds
#
# No hooks: the value has a name. `log=True` because norms are positive and spread over orders of magnitude.

# %%
logits, ckpts = model.run_with_ckpts(text, names="blocks.*.attn.ckpt_attn_out")
norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
print(norms.sizes, norms.attrs["units"])
print([f"{token!r} {norm:.2f}" for token, norm in zip(norms.token.values[0], norms.values[0, 0], strict=True)][:8])

# %% [markdown]
# The first token is unlike all others: it can attend to nothing but itself. `skip=1` leaves it out.

# %%
with pl.plot.theme("light"):
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
    pl.plot.norms(norms, skip=1, ax=axes[0])
    pl.plot.norm_histograms(norms, skip=1, ax=axes[1])

# %% [markdown]
# ## One layer, by hand
#
# The model is `y[t] = b0 + b1 y[t-1] + b2 y[t-2]`. The first token's norm is to enter nowhere, not even as the second
# lag: so the first point is t = 3.

# %%
y = norms.sel(layer=0, batch=0).values
rows = range(3, len(y))
design = np.array([[1.0, y[t - 1], y[t - 2]] for t in rows])
by_hand = sm.OLS(y[3:], design).fit()
print(by_hand.params, by_hand.pvalues)
print(np.linalg.lstsq(design, y[3:], rcond=None)[0])

# %% [markdown]
# ## All layers, in one line
#
# The first point fitted is t = skip + lags = 3. The numbers are those of statsmodels.

# %%
fit = pl.measure.autoregression(norms, lags=2, skip=1)
print(fit)
assert np.allclose(fit.params.loc[0], by_hand.params, rtol=1e-9)
assert np.allclose(fit.pvalues.loc[0], by_hand.pvalues, rtol=1e-9)

# %%
print(fit.summary(0))

# %% [markdown]
# ## The coefficients, layer by layer
#
# Filled markers are significant. With as many tests as layers, some p-values are small by chance: Holm's correction
# takes that into account.

# %%
with pl.plot.theme("light"):
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained", sharey=True)
    pl.plot.autoregression(fit, ax=axes[0])
    axes[0].set_title("p-values as they are")
    pl.plot.autoregression(fit, pvalues=fit.corrected("holm"), ax=axes[1])
    axes[1].set_title("corrected (Holm)")

# %% [markdown]
# ## Is the regression right?
#
# Ljung and Box ask whether the residuals still follow from their own past; standard errors by Newey and West hold where
# they do. How many lags there should be is asked by AIC and BIC, all on the same points.

# %%
print(fit.ljung_box(lags=8).round(3))
print((fit.robust().bse / fit.bse).round(2))
print(pl.measure.select_lags(norms, max_lags=5, skip=1))

# %% [markdown]
# ## More than one text
#
# Sixty-odd points say little. Several texts make one regression for each layer, whose rows never reach from one text
# into another; here they are stories that the model writes itself. `stream` does the same for any number of texts in
# the memory of one batch.

# %%
openings = [
    "Once upon a time",
    "One day",
    "There was a",
    "The old man",
    "Lily and Tom",
    "In the forest",
    "A little dog",
]
stories = model.generate(openings, max_new_tokens=80, sampler=pl.Sampler(temperature=0.8), seed=0, end_ids=())
_, several = model.run_with_ckpts(stories.texts, names="blocks.*.attn.ckpt_attn_out")
pooled = pl.measure.autoregression(pl.measure.norms(several, "attn.ckpt_attn_out", log=True), lags=2, skip=1)
statistic = pl.measure.Autoregression("attn.ckpt_attn_out", lags=2, skip=1, log=True)
(streamed,) = pl.measure.stream(model, stories.texts, [statistic])
print(f"{pooled.nobs} points instead of {fit.nobs}")
print(pooled.params.round(3), streamed.params.round(3), sep="\n")
assert np.allclose(pooled.params, streamed.params, rtol=1e-6)

# %% [markdown]
# ## What position explains
#
# A norm may follow from the one before because both follow from something else. A further regressor is a column more.

# %%
with_position = pl.measure.autoregression(norms, lags=2, skip=1, regressors={"position": norms.position})
print(with_position.params.round(4))
print((with_position.rsquared - fit.rsquared).round(3).to_dict(), "more of the variance explained")
