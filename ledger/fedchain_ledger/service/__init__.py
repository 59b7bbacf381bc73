"""What runs the core: storage, transport, the node."""
