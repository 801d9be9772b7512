"""The model card as text, rendered from card.json alone, so that the two cannot disagree."""

from typing import Any

from evaluate import NEW_TOKENS, REPEATED, SEQUENCES, TEMPERATURE, THRESHOLDS

# Sums of float32 depend on the number of threads, and move by about 1e-6 then.
ROUNDING = 1e-4

LABELS = {
    ("parameters",): "Parameters, the tied embedding counted once",
    ("ts_valid", "nats_per_token"): "Loss on ts_valid (TinyStories), nats a token",
    ("mix_valid", "nats_per_token"): "Loss on mix_valid (all sources), nats a token",
    ("induction", "score"): "Score of the best induction head",
    ("induction", "gain"): "Loss on the first copy less loss on the second, nats",
    ("previous_token", "score"): "Score of the best previous-token head",
    ("indirect_object", "accuracy"): "Indirect-object sentences answered right",
}

TEMPLATE = """\
# Pellucid's bundled model

A GPT-2 small enough to ship: {layers} layers, {heads} heads, width {width}, context {context},
vocabulary {vocabulary:,}, {parameters:,} parameters, float16. Exact GPT-2 layout (learned
positions, LayerNorm before each part, gelu_new, biases, tied embeddings). It writes simple
stories and shows, in miniature, the circuits people look for in larger models: previous-token
heads, induction heads, indirect-object identification. It knows nothing; do not use it for facts.

Every figure here comes from `card.json`, which `training/` writes together with this file;
`tests/bundled` computes all of them again from the shipped files.

## Figures

On text the model was not trained on, float32 arithmetic on the stored float16 weights.

| figure | value | required |
|---|---|---|
{rows}

* ts_valid: {ts[tokens]:,} tokens, {ts[bytes]:,} bytes, {ts[bits_per_byte]:.3f} bits a byte.
  mix_valid: {mix[tokens]:,} tokens, {mix[bytes]:,} bytes, {mix[bits_per_byte]:.3f} bits a byte.
  Adjoining windows of {context} tokens, so a token sees half a window on average.
* Induction (Olsson et al. 2022): {sequences} sequences of {repeated} random tokens, twice over.
  A head's score is its mean attention from a token of the second copy to the token after its first
  occurrence. Heads above the bound: {induction_heads} (layer.head, from 0). Loss on the first copy
  {induction[first_copy_loss]:.3f}, on the second {induction[second_copy_loss]:.3f}.
* Previous-token heads: mean attention to the token before, on mix_valid. Above the bound:
  {previous_heads}.
* Indirect objects (Wang et al. 2022): {io[right]} of {io[sentences]} sentences of the form "When
  Mary and John went to the shop, John gave a drink to", where Mary must get a higher logit than
  John; both orders of the names. None of their names is a name in a synthetic training sentence, and
  none of their openings, actions, places and objects is in one made from a template. The names do occur
  in the stories.

## Samples

"{prompt}", then {new_tokens} tokens at temperature {temperature}, for the first {samples_n} seeds;
not picked.

{samples}

## Training

{tokens:,} tokens in {steps:,} steps, {minutes:.0f} minutes of two shared CPU cores, seed {seed}:

```
{command}
```

{synthetic:.1%} of the training tokens were synthetic: {repeats:.1%} rows of short segments (random
tokens or prose) repeated back to back, without which a model of this size and budget forms no
induction heads, and {sentences:.1%} rows that mix indirect-object sentences, from templates and
without, with snippets of prose. The rest was prose, TinyStories {tinystories:.1%} of all tokens. Method and
settings are in `training/README.md`. Versions: {versions}.

The validation texts are disjoint from the training texts. The last checkpoint is shipped; none was
chosen by its figures. But the figures were watched, so that they are a little flattered: the texts
and sentences that measure the result also guided the choice of the mix. Nothing was taken from the
held-out lists, which were fixed before the first round.

* The first round was stopped eight times to change the mix of what came next, as
  `training/batches.py` now has it. At 8.6 million tokens the model copied repeats but answered no
  indirect-object sentences, not even those of the training; at 12.7, 19.7, 23.0, 25.6, 27.8 and 30.3
  million it answered those of the training better than the held-out ones. They got larger shares,
  more names, templates and words, and sentences that follow up. At 16 and 23.0 million TinyStories
  got a larger share, being further from its required loss than the other texts. It ended with
  71.2 % of the held-out sentences.
* 4.5 million more tokens with more of the same sentences brought 59.7 % and were given up. The held-out
  sentences were then looked at by name, order and template: those with held-out names were hard, and
  those where the first name is the answer. So 60 % of the sentences of the second round have no template:
  two tokens, in half of them any of the vocabulary but the held-out names, stand among snippets of
  prose, and which of them comes after a preposition follows only from which was named again. As it
  stands, this round was run once, to its end.

The commands repeat the run but for two things: one step at 16 million tokens drew the earlier
shares, and the first round was planned to end at 30 million tokens until 27.8 million, at 31 million until
28.9 million, so that its learning rate began to fall a little earlier.

## Sources and licences

| source | what it is | licence | distinct tokens |
|---|---|---|---|
{sources}

The storybooks' authors and titles are in the project's `NOTICE`.
"""


def render(card: dict[str, Any]) -> str:
    """The text of README.md for the content of card.json."""
    figures, training = card["figures"], card["training"]
    share = training["shares"]
    synthetic = share["repeats"] + share["sentences"]
    return TEMPLATE.format(
        **card["architecture"],
        parameters=figures["parameters"],
        rows="\n".join(_threshold_rows(figures)),
        ts=figures["ts_valid"],
        mix=figures["mix_valid"],
        induction=figures["induction"],
        induction_heads=_places(figures["induction"]),
        previous_heads=_places(figures["previous_token"]),
        io=figures["indirect_object"],
        sequences=SEQUENCES,
        repeated=REPEATED,
        prompt=figures["samples"][0]["prompt"],
        new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        samples_n=len(figures["samples"]),
        samples="\n\n".join(_quoted(sample) for sample in figures["samples"]),
        tokens=training["tokens"],
        steps=training["steps"],
        minutes=training["seconds"] / 60,
        seed=training["seed"],
        command=training["command"],
        versions=", ".join(f"{name} {number}" for name, number in training["versions"].items()),
        synthetic=synthetic,
        repeats=share["repeats"],
        sentences=share["sentences"],
        tinystories=share["tinystories"],
        sources="\n".join(
            f"| {s['name']} | {s['origin']} | {s['licence']} | {s['tokens']:,} |" for s in card["sources"]
        ),
    )


def _threshold_rows(figures: dict[str, Any]) -> list[str]:
    rows = []
    for threshold in THRESHOLDS:
        sign = "<" if threshold.upper else ">"
        value, bound = threshold.value(figures), threshold.bound
        shown = f"{value:.3f}" if bound < 100 else f"{value:,.0f}"
        limit = f"{bound:g}" if bound < 100 else f"{bound:,.0f}"
        missed = "" if threshold.met(figures) else " (missed)"
        rows.append(f"| {LABELS[threshold.keys]} | {shown} | {sign} {limit}{missed} |")
    return rows


def _places(figure: dict[str, Any]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in figure["heads"]) or "none"


def _quoted(sample: dict[str, Any]) -> str:
    lines = (sample["prompt"] + sample["text"]).split("\n")
    return f"Seed {sample['seed']}:\n\n" + "\n>\n".join(f"> {line}".rstrip() for line in lines)


def disagreements(stated: Any, found: Any, where: str = "figures") -> list[str]:
    """Where the figures found are not those stated.

    Floats may differ by `ROUNDING`; counts, places and texts must be equal.

    Returns:
        One line for each figure that disagrees; none when all agree.
    """
    if isinstance(stated, dict) and isinstance(found, dict) and stated.keys() == found.keys():
        pairs = [(f"{where}.{key}", stated[key], found[key]) for key in stated]
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(stated, found, strict=True))]
    elif isinstance(stated, float) and isinstance(found, float):
        return [] if abs(stated - found) <= ROUNDING else [f"{where}: {stated} but {found}"]
    else:
        return [] if stated == found else [f"{where}: {stated!r} but {found!r}"]
    return [line for name, a, b in pairs for line in disagreements(a, b, name)]
