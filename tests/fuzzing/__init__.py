"""Every parser of bytes that nobody trusts, fed with what no writer writes."""
