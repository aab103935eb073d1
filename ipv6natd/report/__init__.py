"""Output for people and programs: status, explanations, metrics, checks, journal messages.

Nothing is decided here. `dbus` and `ctl` deliver the output.
Read `status` first.
"""
