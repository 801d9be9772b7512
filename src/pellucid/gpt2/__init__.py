"""Everything that knows GPT-2."""
