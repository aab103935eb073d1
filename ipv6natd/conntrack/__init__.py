"""The kernel's conntrack entries: which are stale after a change of mappings, and their deletion.

No rules are written here. `sync` decides when entries are checked. Read `stale` first.
"""
