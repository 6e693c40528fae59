"""Values that go from node to node."""
