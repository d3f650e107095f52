"""Tidy tables of numbers from models, recipes and statistics, and the figures drawn from them.

    table      channels, site_map, scri, temporal, htdq, errors, sensitivity: typed, with `columns()` for a file
    drawing    figures.*: what one table looks like, described once, and in words
    figure     screen: plotly, for the page and notebooks; paper: matplotlib, for PDF, SVG and PNG

Nothing here runs a model or imports gradio, so all of it works from a notebook.
"""
