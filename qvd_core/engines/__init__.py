"""Engines: the integer computation of quantized layers, in integers."""
