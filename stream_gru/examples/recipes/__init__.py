"""Recipes: the systems of five GRU tutorials, trained and streamed like any other model."""
