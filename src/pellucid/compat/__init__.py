"""Interfaces of other libraries over pellucid's models, for code that was written for them."""
