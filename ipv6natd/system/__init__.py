"""Threads, processes, files, logs, systemd and the terminal: what every package may use.

Nothing here knows Docker, netfilter or D-Bus. A process is started in `process` alone, and a
file of ours is written in `files` alone.
Read `process` first.
"""
