"""Threads, processes, files, logs, systemd and the terminal: what every package may use.

Nothing here knows Docker, netfilter or D-Bus. Only `process` starts processes, and only `files`
writes files of ipv6natd.
Read `process` first.
"""
