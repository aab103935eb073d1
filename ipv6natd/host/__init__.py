"""The host: addresses, sysctls, other firewalls, and what is wrong with them."""
