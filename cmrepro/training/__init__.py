"""Recipes and the loop that trains them: EDM teacher, consistency distillation and training."""
