"""The table of flows of the kernel, and which entries are stale."""
