"""What one client has on a node, from its first message to its last."""
