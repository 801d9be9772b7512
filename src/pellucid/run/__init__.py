"""One run of the model: capture, edit, start and stop in the middle."""
