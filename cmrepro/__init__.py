"""Reproducibility benchmark suite for Consistency Models (Song et al., ICML 2023)."""

__version__ = "0.1.0"
