"""What several modalities bring, and recommendation models, found in any program's graph."""
