"""Performance: `make bench` measures the table of docs/performance and draws its plots."""
