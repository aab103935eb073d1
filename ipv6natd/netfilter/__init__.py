"""Rules, chains and tables as values, their text, and the difference between two states.

Pure: no I/O. The decision which rules are needed belongs in `policy`; the calls that read and write
the kernel's tables belong in `firewall`. Read `rules` first, then `diff`.
"""
