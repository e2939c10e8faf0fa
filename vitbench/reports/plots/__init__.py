"""Plots as PNG, one file for each thing that is drawn; ``style`` holds what they share."""
