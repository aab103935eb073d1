"""Rules, chains and tables as values, their text, and the difference of two states.

Pure. Which rules are needed is decided in `policy`; who writes them to the kernel is in `firewall`.
Read `rules` first, then `diff`.
"""
