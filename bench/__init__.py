"""How fast it is: `make bench` measures the table of docs/performance and draws its plots."""
