// What each checkpoint is, for someone who sees it for the first time: a formula, a sentence, and where to read on.

import type { Header, Point } from "./trace";

export type Told = { label: string; tex: string; line: string; reading: string };

const SCALED = "\\hat x = \\frac{x - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}";
const NORMALIZED = "y = \\hat x \\odot \\gamma + \\beta";

/** Name -> formula, sentence, reading. */
const TOLD: Record<string, [string, string, string]> = {
  ckpt_embed: ["e_i = W_E [ t_i ]", "Each token id picks a row of a table. From here on the model only sees these vectors.", "embeddings"],
  ckpt_pos_embed: ["p_i = W_{pos} [ i ]", "Each position picks a row of a second table, so that word order is not lost.", "embeddings"],
  resid_pre: ["x_i", "The residual stream: one vector per token that every block reads from and adds to.", "residual"],
  "ln1.ckpt_scaled": [SCALED, "The vector is brought to mean 0 and variance 1, so that its size does not matter.", "residual"],
  "ln1.ckpt_normalized": [NORMALIZED, "A learned gain and offset for each dimension; this is what attention reads.", "residual"],
  "attn.ckpt_q": ["q = y W_Q + b_Q", "What this token is looking for, one vector for each head.", "attention"],
  "attn.ckpt_k": ["k = y W_K + b_K", "What this token offers to those who look, one vector for each head.", "attention"],
  "attn.ckpt_v": ["v = y W_V + b_V", "What this token hands over if it is looked at.", "attention"],
  "attn.ckpt_rot_q": ["R_i q_i", "The query, turned by an angle that depends on its position.", "attention"],
  "attn.ckpt_rot_k": ["R_j k_j", "The key, turned by an angle that depends on its position; only the distance matters in the product.", "attention"],
  "attn.ckpt_scores": ["s_{ij} = \\frac{q_i \\cdot k_j}{\\sqrt{d}}, \\quad j \\le i", "How well each earlier token fits what this one looks for. Later tokens are masked.", "attention"],
  "attn.ckpt_pattern": ["a_{ij} = \\frac{\\exp s_{ij}}{\\sum_j \\exp s_{ij}}", "The scores as shares that sum to one: where this token looks.", "attention"],
  "attn.ckpt_z": ["z_i = \\sum_j a_{ij} v_j", "The values of the tokens that were looked at, mixed in those shares.", "attention"],
  "attn.ckpt_attn_out": ["\\sum_h z_h W_O^h + b_O", "What all heads of this block together add to the stream.", "attention"],
  resid_mid: ["x' = x + \\text{attn_out}", "The stream after attention. Nothing is replaced: attention only adds.", "residual"],
  "ln2.ckpt_scaled": ["\\hat x = \\frac{x' - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}", "The stream is brought to mean 0 and variance 1 once more.", "residual"],
  "ln2.ckpt_normalized": [NORMALIZED, "What the MLP reads.", "residual"],
  "mlp.ckpt_pre": ["y W_{in} + b_{in}", "How much each neuron's direction is present in the vector.", "mlp"],
  "mlp.ckpt_gate": ["y W_{gate}", "How far each neuron's gate is open, before the activation.", "mlp"],
  "mlp.ckpt_up": ["y W_{in}", "What each neuron would pass on if its gate were open.", "mlp"],
  "mlp.ckpt_post": ["\\gelu ( \\text{pre} )", "Each neuron's value: almost nothing for negative inputs, almost unchanged for positive ones.", "mlp"],
  "mlp.ckpt_mlp_out": ["\\text{post} \\, W_{out} + b_{out}", "What all neurons of this block together add to the stream.", "mlp"],
  resid_post: ["x'' = x' + \\text{mlp_out}", "What leaves this block and enters the next.", "residual"],
  "ln_final.ckpt_scaled": [SCALED, "The last stream, standardized.", "next_token"],
  "ln_final.ckpt_normalized": [NORMALIZED, "What is compared with each token of the vocabulary.", "next_token"],
  logits: ["y W_U", "One number for each token of the vocabulary; softmax turns them into probabilities.", "next_token"],
};

/** What is told of a checkpoint; the schema's own words if nothing more is known. */
export function told(point: Point): Told {
  const known = [point.short, point.name].find((name) => Object.hasOwn(TOLD, name));
  const [tex, line, reading] = known ? TOLD[known] : [`\\text{${point.equation.replace(/[{}\\]/g, "")}}`, point.meaning, ""];
  return { label: point.short.split(".").at(-1)!.replace(/^ckpt_/, ""), tex, line, reading };
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
