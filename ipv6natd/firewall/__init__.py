"""The kernel's tables: read, written and watched, in both variants of ip6tables."""
