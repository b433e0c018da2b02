"""Checkpoints: weights, recipe and provenance in one safetensors file."""
