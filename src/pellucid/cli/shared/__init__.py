"""What the verbs share: their options, how they write, and how they fail."""
