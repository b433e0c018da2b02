"""Checks of an installation, and of files for causes of a wrong score."""
