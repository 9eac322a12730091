"""What runs machines: guest (one in its VM), machine, standing, line, work, shift, drive,
scheduler, driver, kick, clock.
"""
