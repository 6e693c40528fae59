"""A node: who comes in, what it keeps, and what it does for those who are there."""
