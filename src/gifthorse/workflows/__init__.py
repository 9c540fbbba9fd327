"""What a command does, from its request to its result."""
