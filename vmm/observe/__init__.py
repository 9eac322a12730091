"""Watching a monitor: its events, written down."""
