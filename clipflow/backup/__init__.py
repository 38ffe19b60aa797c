"""A workspace kept elsewhere, taken while it serves, and put back."""
