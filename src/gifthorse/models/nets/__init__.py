"""The architectures that ship, one family a file."""
