"""Causes of a wrong score in a sample set, checkpoint, statistics file or record; the machine."""
