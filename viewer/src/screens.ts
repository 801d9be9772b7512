// The table of screens: each is a file in screens/, and a question with a sentence on what to look for.

import type { ComponentType } from "preact";
import { Atlas } from "./screens/atlas";
import { Attention } from "./screens/attention";
import { Change } from "./screens/change";
import { Distributions } from "./screens/distributions";
import { Embeddings } from "./screens/embeddings";
import { Lens } from "./screens/lens";
import { Models } from "./screens/models";
import { Neurons } from "./screens/neurons";
import { Overview } from "./screens/overview";
import { Prediction } from "./screens/prediction";
import { RiverScreen } from "./screens/river";

export type Screen = {
  /** In links: `#attention?layer=2`. */
  id: string;
  name: string;
  question: string;
  look: string;
  view: ComponentType;
};

export const SCREENS: Screen[] = [
  {
    id: "overview",
    name: "Overview",
    question: "What happens in between?",
    look: "Look for the block whose bar grows most: that is where the vectors are rewritten.",
    view: Overview,
  },
  {
    id: "attention",
    name: "Attention",
    question: "What does the model look at?",
    look: "Look for stripes: a bright diagonal looks at the token before, a bright left edge at the first token, a broken diagonal at what followed last time.",
    view: Attention,
  },
  {
    id: "prediction",
    name: "Prediction",
    question: "What comes next?",
    look: "Look at how few tokens are left after each stage: the settings, not only the model, decide what can be said.",
    view: Prediction,
  },
  {
    id: "lens",
    name: "Lens",
    question: "When does it know?",
    look: "Look for the row where a column stops changing: from there on the later layers only make it more certain.",
    view: Lens,
  },
  {
    id: "river",
    name: "River",
    question: "Who wrote the answer?",
    look: "Look for the stream that swells most, and at which layer: that is who wrote it, and when.",
    view: RiverScreen,
  },
  {
    id: "neurons",
    name: "Neurons",
    question: "What sets a neuron off?",
    look: "Look at which tokens one neuron stands out for, and whether they have something in common. Most neurons are quiet at most tokens.",
    view: Neurons,
  },
  {
    id: "embeddings",
    name: "Embeddings",
    question: "Which tokens are alike?",
    look: "Look at which tokens lie together: early in the model the same words, later words that are followed by the same. One dot far from all is often the first token.",
    view: Embeddings,
  },
  {
    id: "distributions",
    name: "Distributions",
    question: "Which values stand out?",
    look: "Look at how much wider the shapes get from norm to norm, and at the few dimensions that do most of it. A norm brings them back.",
    view: Distributions,
  },
  {
    id: "change",
    name: "Change it",
    question: "What if a part were missing?",
    look: "Look at the grey bar beside each effect: if another head at random does as much, the one that you chose is nothing special.",
    view: Change,
  },
  {
    id: "atlas",
    name: "Atlas",
    question: "Can I see all of it?",
    look: "Look for vertical lines: a dimension that is large at every token. Then go closer, down to a single number and its name.",
    view: Atlas,
  },
  {
    id: "models",
    name: "Two models",
    question: "How do we know that this is right?",
    look: "Compare the model with another program or file of it, such as transformers’. Look for the first cell that is neither = nor ≈: what comes after it only passes the difference on.",
    view: Models,
  },
];
