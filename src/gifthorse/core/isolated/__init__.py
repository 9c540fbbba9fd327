"""Bytes that nobody trusts, parsed in a process that can do nothing but parse them."""
