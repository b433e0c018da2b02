"""Experiments: sample a checkpoint, score the images, write records; the main job."""
