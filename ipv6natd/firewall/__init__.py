"""Reads, writes and monitors the kernel's tables, in both variants of ip6tables.

No decision about rules belongs here: a backend writes the change that it is given. Read `backend`
first, then `restore`.
"""
