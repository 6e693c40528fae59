"""What language models are made of, found in any program's graph."""
