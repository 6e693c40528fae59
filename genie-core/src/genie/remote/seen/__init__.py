"""A node as it is seen: its numbers at one moment, for metrics, pages and people."""
