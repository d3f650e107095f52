"""QVD Studio: `python app.py` serves the page. `--help` lists the options."""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    parser.add_argument(
        "--any-model",
        action="store_true",
        default=os.environ.get("QVD_ANY_MODEL") == "1",
        help="let visitors load hub models and folders of this machine, not the embedded ones alone: for a page only"
        " you can reach (also QVD_ANY_MODEL=1)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args()

    from ui.live_view import STYLE as FIGURES_STYLE
    from ui.studio import build
    from ui.theme import STYLE, theme

    demo = build(any_model=options.any_model)
    demo.queue(max_size=32).launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=options.open,
        theme=theme(),
        css_paths=[STYLE, FIGURES_STYLE],
        max_file_size="1kb",  # nothing here takes uploads
        footer_links=["api", "settings"],
        run_history=False,
        show_error=False,
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
