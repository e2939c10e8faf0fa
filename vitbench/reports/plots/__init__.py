"""Plots as SVG, PNG or PDF, one file for each thing that is drawn; ``kinds`` has those of ``vitbench plot``."""
