"""The models of the evaluation of semantics, with their truths."""
