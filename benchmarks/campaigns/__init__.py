"""Load and faults: what a node is put through, and the proof that nothing went wrong."""
