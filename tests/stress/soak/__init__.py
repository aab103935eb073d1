"""Faults and long random runs under traffic, beside a real engine; `make soak` runs them."""
