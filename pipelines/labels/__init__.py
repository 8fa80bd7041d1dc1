"""Labelled examples: taken in, checked, split and frozen into training sets."""
