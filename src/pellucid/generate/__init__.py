"""Continue texts: the loop, samplers, beams, and what they give."""
