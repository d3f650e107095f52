"""Tidy tables of numbers from models, recipes and statistics, and the figures drawn from them.

Nothing here runs a model or imports gradio, so all of it works from a notebook.
"""
