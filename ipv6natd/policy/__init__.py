"""Which rules the containers and networks need."""
