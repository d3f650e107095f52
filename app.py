"""QVD Studio: `python app.py` opens the page. `--help` lists the options."""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args()

    from ui.figure_panel import STYLE as FIGURES_STYLE
    from ui.studio import build
    from ui.theme import STYLE, theme

    on_space = os.environ.get("SYSTEM") == "spaces"
    private = not on_space and options.host in (None, "127.0.0.1", "localhost")
    demo = build(allow_folders=private)
    demo.queue(max_size=32).launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=options.open,
        theme=theme(),
        css_paths=[STYLE, FIGURES_STYLE],
        max_file_size="50mb",
        footer_links=["api", "settings"],
        run_history=False,
        show_error=False,
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
