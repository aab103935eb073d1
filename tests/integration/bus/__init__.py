"""The bus service, its transport and the control tool, on a private bus."""
