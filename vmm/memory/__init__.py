"""Host memory: mappings, private memory, the page pool, and the movers."""
