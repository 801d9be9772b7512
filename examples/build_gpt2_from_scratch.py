# %% [markdown]
# # Build GPT-2 from scratch
#
# Write each class yourself, then let its check tell you what is right and, where something is not, which mistake it
# is. What follows is one complete solution. The notebook runs offline with the small model that ships with
# pellucid; for GPT-2 itself, change the line `NAME = None`.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid import exercises

NAME = None  # "gpt2-small" for OpenAI's weights (downloads them)

# %% [markdown]
# ## Attention
#
# One matrix makes the queries, keys and values of all heads. A query may look at its own position and at earlier
# ones; every other score is set to -10,000 before the softmax. With a cache, keys and values of earlier calls come
# first, and the queries are the last positions.


# %%
class UnidirectionalAttention(nn.Module):
    def __init__(self, hidden_size, num_heads, head_size=None, dropout=0.1):
        super().__init__()
        self.num_heads = num_heads
        self.head_size = hidden_size // num_heads if head_size is None else head_size
        inner = self.num_heads * self.head_size
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner)
        self.attn_dropout = nn.Dropout(dropout)
        self.output_proj = nn.Linear(inner, hidden_size)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache=None) -> Tensor:
        batch, seq, _ = x.shape
        q, k, v = self.qkv_proj(x).view(batch, seq, 3, self.num_heads, self.head_size).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, head, seq, head_size)
        if cache is not None:
            k, v = cache.extended(self, k, v)

        scores = q @ k.transpose(-1, -2) / self.head_size**0.5  # (batch, head, query, key)
        keys = k.shape[2]
        future = torch.ones(seq, keys, dtype=torch.bool, device=x.device).triu(keys - seq + 1)
        scores = scores.masked_fill(future, -1e4)
        pattern = self.attn_dropout(scores.softmax(-1))

        z = (pattern @ v).transpose(1, 2).reshape(batch, seq, -1)
        return self.resid_dropout(self.output_proj(z))


print(exercises.check_attention(UnidirectionalAttention))

# %% [markdown]
# ## Block
#
# Attention and the MLP each read a normalized copy of the residual stream and add to it.

# %%
ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU()}


class GPT2Block(nn.Module):
    def __init__(self, hidden_size, num_heads, dropout, layer_norm_epsilon, activation_function):
        super().__init__()
        self.ln1 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)
        self.attn = UnidirectionalAttention(hidden_size, num_heads, dropout=dropout)
        self.ln2 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)
        self.linear1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.activation = ACTIVATIONS[activation_function]
        self.linear2 = nn.Linear(4 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache=None) -> Tensor:
        x = x + self.attn(self.ln1(x), cache)
        hidden = self.activation(self.linear1(self.ln2(x)))
        return x + self.dropout(self.linear2(hidden))


print(exercises.check_block(GPT2Block))

# %% [markdown]
# ## GPT-2
#
# Tokens and positions go in, blocks follow, and the token embedding is used once more to make the logits.


# %%
class GPT2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            GPT2Block(
                config.hidden_size,
                config.num_heads,
                config.dropout,
                config.layer_norm_epsilon,
                config.activation_function,
            )
            for _ in range(config.num_layers)
        )
        self.ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, x: Tensor, cache=None) -> Tensor:
        before = 0 if cache is None else cache.length
        positions = torch.arange(before, before + x.shape[1], device=x.device)
        h = self.dropout(self.token_embedding(x) + self.pos_embedding(positions))
        for block in self.blocks:
            h = block(h, cache)
        if cache is not None:
            cache.length += x.shape[1]
        return torch.einsum("bsd,vd->bsv", self.ln(h), self.token_embedding.weight)


print(exercises.check_gpt2(GPT2))

# %% [markdown]
# ## Cache
#
# What attention has computed for earlier tokens does not change, so it is kept.


# %%
class Cache:
    def __init__(self):
        self.length = 0
        self.kept = {}

    def extended(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        self.kept[layer] = k, v
        return k, v


print(exercises.check_cache(GPT2, Cache))

# %% [markdown]
# ## Real weights
#
# Which parameter is which is found from values, not from names: the alignment converts the weights of any GPT-2 into
# a state dict for this class. The activation here is `nn.GELU()`, while GPT-2 was trained with its tanh form; the
# check says how far apart the two are.

# %%
reference = pl.load(NAME)
my_gpt = GPT2(exercises.config_of(reference)).eval()
alignment = exercises.alignment_for(my_gpt, reference)
my_gpt.load_state_dict(alignment.convert(reference))
print(exercises.check_pretrained(my_gpt, reference.tokenizer, reference))

# %% [markdown]
# With the tanh form the logits are the reference's, but for rounding.

# %%
ACTIVATIONS["gelu"] = nn.GELU(approximate="tanh")
exact = GPT2(exercises.config_of(reference)).eval()
exact.load_state_dict(my_gpt.state_dict())
print(exercises.check_pretrained(exact, reference.tokenizer, reference))

# %% [markdown]
# ## Sampling


# %%
def greedy_search(logits: Tensor) -> int:
    return int(logits.argmax())


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    return logits / temperature


def apply_freq_penalty(input_ids: Tensor, logits: Tensor, freq_penalty: float) -> Tensor:
    return logits - freq_penalty * torch.bincount(input_ids, minlength=len(logits))


def sample_basic(logits: Tensor) -> int:
    return int(torch.multinomial(logits.softmax(-1), 1))


def sample_top_k(logits: Tensor, top_k: int) -> int:
    best = logits.topk(top_k)
    return int(best.indices[sample_basic(best.values)])


def sample_top_p(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
    ranked = logits.sort(descending=True)
    reached = ranked.values.softmax(-1).cumsum(-1)
    keep = max(min_tokens_to_keep, int((reached < top_p).sum()) + 1)
    return int(ranked.indices[sample_basic(ranked.values[:keep])])


def sample_next_token(model, input_ids, temperature=1.0, freq_penalty=0.0, top_k=0, top_p=0.0, cache=None) -> int:
    logits = model(input_ids[None], cache=cache)[0, -1]
    if temperature == 0:
        return greedy_search(logits)
    logits = apply_temperature(logits, temperature)
    logits = apply_freq_penalty(input_ids, logits, freq_penalty)
    if top_k:
        return sample_top_k(logits, top_k)
    if top_p:
        return sample_top_p(logits, top_p)
    return sample_basic(logits)


print(
    exercises.check_sampling(
        greedy_search,
        apply_temperature,
        apply_freq_penalty,
        sample_basic,
        sample_top_k,
        sample_top_p,
        sample_next_token,
    )
)

# %% [markdown]
# ## Beam search
#
# The texts with the largest sums of log-probabilities. The continuations of all beams are read from the best one on,
# until `num_beams` of them go on; each one that ends on the way there is a finished text. Once there are enough
# finished texts the search is over; if the length runs out first, the best beams take the places that are left.


# %%
def beam_search(model, input_ids, num_return_sequences, num_beams, max_new_tokens, tokenizer, verbose=False):
    beams, ended = [(0.0, input_ids)], []
    for _ in range(max_new_tokens):
        grown = []
        for score, ids in beams:
            logprobs = F.log_softmax(model(ids[None])[0, -1], -1)
            best = logprobs.topk(min(2 * num_beams, len(logprobs)))  # no more of one beam's are ever read
            grown += [(score + float(gain), torch.cat([ids, token[None]])) for gain, token in zip(*best, strict=True)]
        grown.sort(key=lambda one: one[0], reverse=True)
        beams = []
        for score, ids in grown:
            if ids[-1] == tokenizer.eos_token_id:
                ended.append((score, ids[:-1]))
            else:
                beams.append((score, ids))
            if len(beams) == num_beams:
                break
        if len(ended) >= num_return_sequences:
            break
    ended += beams[: max(0, num_return_sequences - len(ended))]
    return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]


print(exercises.check_sampling(beam_search))

# %% [markdown]
# ## All together

# %%
torch.manual_seed(0)
ids = torch.tensor(reference.tokenizer.encode("Once upon a time"))
cache, given = Cache(), ids
with torch.no_grad():
    for _ in range(30):
        token = sample_next_token(exact, given, temperature=0.7, top_p=0.9, cache=cache)
        given = torch.tensor([token])
        ids = torch.cat([ids, given])
print(reference.tokenizer.decode(ids))
