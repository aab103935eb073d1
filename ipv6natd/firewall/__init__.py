"""The tables of the kernel, in both variants of ip6tables: read, written and watched.

Which rules stand there is decided elsewhere: a backend writes what it is given.
Read `backend` first, then `restore`.
"""
