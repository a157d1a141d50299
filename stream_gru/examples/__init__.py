"""Recipes and simulators."""
