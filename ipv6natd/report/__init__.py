"""What people and programs read: status, explanations, metrics, checks, the journal.

Nothing is decided here. How it reaches a reader is in `dbus` and `ctl`.
Read `status` first.
"""
