"""The client's end: backends, sessions and conversations with nodes, and the questions asked of them."""
