"""The `pageferry` command: its groups and options, what it prints, and how it ends."""
