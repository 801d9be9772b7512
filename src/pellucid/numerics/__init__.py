"""Products and activation functions, exact, fast or rounded; what has to know about torch's state."""
