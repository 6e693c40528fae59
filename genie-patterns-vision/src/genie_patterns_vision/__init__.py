"""What vision models are made of, found in any program's graph."""
