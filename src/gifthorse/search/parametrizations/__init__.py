"""Families of triggers as a search sees them: variables, decoding, stamping, size."""
