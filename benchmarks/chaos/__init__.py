"""Disturbs a real job on several hosts, and tells what that costs and whether anything was lost."""
