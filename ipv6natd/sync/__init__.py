"""When rules are written, and how one pass works."""
