"""The host: addresses, routes, sysctls, firewalls of others, and what is wrong with them.

Only reads, and says what is wrong. What is changed on the host is changed in `sync` and `firewall`.
Read `facts` first, then `findings`.
"""
