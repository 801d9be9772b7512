"""Statistics that are gathered from any number of texts, in the memory of one batch."""
