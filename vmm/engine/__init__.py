"""What runs machines: guest (one in its VM), machine, scheduler, driver, kick, clock."""
