"""Genie's engine ``xla``: programs that come as StableHLO, compiled by XLA for this machine's CPU."""
