"""Causes of a wrong score in a sample set, checkpoint, statistics file or record; the machine.

Only causes that are stated, or cheap and certain to measure (causes.toml).
"""
