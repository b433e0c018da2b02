"""Checkpoints: weights, recipe and origin in one safetensors file."""
