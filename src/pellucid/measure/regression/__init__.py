"""Series of norms regressed on their own past: every layer at once, in memory or over a stream of texts."""
