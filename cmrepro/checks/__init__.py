"""Causes of a wrong score in a sample set, checkpoint or record; the machine."""
