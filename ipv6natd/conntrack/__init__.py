"""The table of flows of the kernel: which entries are stale, and how they are deleted.

Rules are not written here. When to look is decided in `sync`.
Read `stale` first.
"""
