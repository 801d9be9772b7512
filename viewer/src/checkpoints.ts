// What each checkpoint is, for someone who sees it for the first time: a formula, a sentence, and where to read on.

import type { Header, Point } from "./trace";

export type Told = { label: string; tex: string; line: string; reading: string };

const TOLD: Record<string, Told> = {
  ckpt_embed: { label: "embed", tex: "e_i = W_E [ t_i ]", line: "Each token id picks a row of a table. From here on the model only sees these vectors.", reading: "embeddings" },
  ckpt_pos_embed: { label: "pos_embed", tex: "p_i = W_{pos} [ i ]", line: "Each position picks a row of a second table, so that word order is not lost.", reading: "embeddings" },
  resid_pre: { label: "resid_pre", tex: "x_i", line: "The residual stream: one vector per token that every block reads from and adds to.", reading: "residual" },
  "ln1.ckpt_scaled": { label: "scaled", tex: "\\hat x = \\frac{x - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}", line: "The vector is brought to mean 0 and variance 1, so that its size does not matter.", reading: "residual" },
  "ln1.ckpt_normalized": { label: "normalized", tex: "y = \\hat x \\odot \\gamma + \\beta", line: "A learned gain and offset for each dimension; this is what attention reads.", reading: "residual" },
  "attn.ckpt_q": { label: "q", tex: "q = y W_Q + b_Q", line: "What this token is looking for, one vector for each head.", reading: "attention" },
  "attn.ckpt_k": { label: "k", tex: "k = y W_K + b_K", line: "What this token offers to those who look, one vector for each head.", reading: "attention" },
  "attn.ckpt_v": { label: "v", tex: "v = y W_V + b_V", line: "What this token hands over if it is looked at.", reading: "attention" },
  "attn.ckpt_rot_q": { label: "rot_q", tex: "R_i q_i", line: "The query, turned by an angle that depends on its position.", reading: "attention" },
  "attn.ckpt_rot_k": { label: "rot_k", tex: "R_j k_j", line: "The key, turned by an angle that depends on its position; only the distance matters in the product.", reading: "attention" },
  "attn.ckpt_scores": { label: "scores", tex: "s_{ij} = \\frac{q_i \\cdot k_j}{\\sqrt{d}}, \\quad j \\le i", line: "How well each earlier token fits what this one looks for. Later tokens are masked.", reading: "attention" },
  "attn.ckpt_pattern": { label: "pattern", tex: "a_{ij} = \\frac{\\exp s_{ij}}{\\sum_j \\exp s_{ij}}", line: "The scores as shares that sum to one: where this token looks.", reading: "attention" },
  "attn.ckpt_z": { label: "z", tex: "z_i = \\sum_j a_{ij} v_j", line: "The values of the tokens that were looked at, mixed in those shares.", reading: "attention" },
  "attn.ckpt_attn_out": { label: "attn_out", tex: "\\sum_h z_h W_O^h + b_O", line: "What all heads of this block together add to the stream.", reading: "attention" },
  resid_mid: { label: "resid_mid", tex: "x' = x + \\text{attn_out}", line: "The stream after attention. Nothing is replaced: attention only adds.", reading: "residual" },
  "ln2.ckpt_scaled": { label: "scaled", tex: "\\hat x = \\frac{x' - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}", line: "The stream is brought to mean 0 and variance 1 once more.", reading: "residual" },
  "ln2.ckpt_normalized": { label: "normalized", tex: "y = \\hat x \\odot \\gamma + \\beta", line: "What the MLP reads.", reading: "residual" },
  "mlp.ckpt_pre": { label: "pre", tex: "y W_{in} + b_{in}", line: "How much each neuron's direction is present in the vector.", reading: "mlp" },
  "mlp.ckpt_gate": { label: "gate", tex: "y W_{gate}", line: "How far each neuron's gate is open, before the activation.", reading: "mlp" },
  "mlp.ckpt_up": { label: "up", tex: "y W_{in}", line: "What each neuron would pass on if its gate were open.", reading: "mlp" },
  "mlp.ckpt_post": { label: "post", tex: "\\gelu ( \\text{pre} )", line: "Each neuron's value: almost nothing for negative inputs, almost unchanged for positive ones.", reading: "mlp" },
  "mlp.ckpt_mlp_out": { label: "mlp_out", tex: "\\text{post} \\, W_{out} + b_{out}", line: "What all neurons of this block together add to the stream.", reading: "mlp" },
  resid_post: { label: "resid_post", tex: "x'' = x' + \\text{mlp_out}", line: "What leaves this block and enters the next.", reading: "residual" },
  "ln_final.ckpt_scaled": { label: "scaled", tex: "\\hat x = \\frac{x - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}", line: "The last stream, standardized.", reading: "next_token" },
  "ln_final.ckpt_normalized": { label: "normalized", tex: "y = \\hat x \\odot \\gamma + \\beta", line: "What is compared with each token of the vocabulary.", reading: "next_token" },
  logits: { label: "logits", tex: "y W_U", line: "One number for each token of the vocabulary; softmax turns them into probabilities.", reading: "next_token" },
};

/** What is told of a checkpoint; the schema's own words if nothing more is known. */
export function told(point: Point): Told {
  const known = [point.short, point.name].find((name) => Object.hasOwn(TOLD, name));
  if (known) return TOLD[known];
  const label = point.short.split(".").at(-1)!.replace(/^ckpt_/, "");
  return { label, tex: `\\text{${point.equation.replace(/[{}\\]/g, "")}}`, line: point.meaning, reading: "" };
}

/** Every checkpoint in execution order, and the logits at the end. */
export function pointsOf(header: Header): Point[] {
  const { sizes } = header.model;
  const logits: Point = {
    name: "logits",
    block: null,
    short: "logits",
    axes: ["batch", "pos", "d_vocab"],
    shape: [1, header.tokens.length, sizes.d_vocab],
    unit: "nats",
    meaning: "scores of all tokens of the vocabulary",
    equation: "ln_final.ckpt_normalized @ W_U",
    computed: "always",
  };
  return [...header.schema.points, logits];
}
