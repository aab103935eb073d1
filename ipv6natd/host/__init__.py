"""The host: addresses, routes, sysctls, firewalls of other programs, and faults in them.

Reads facts and derives findings. Changes of the host are made in `sync` and `firewall`; only the
filter flag of single bridges is set here.
Read `facts` first, then `findings`.
"""
