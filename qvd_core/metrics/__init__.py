"""Measures of quality, each under the name the field gives it."""
