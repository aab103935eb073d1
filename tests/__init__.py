"""Everything that checks ipv6natd."""
