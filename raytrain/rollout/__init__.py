"""Environments and the actors that host them. Knows no learner and no file system."""
