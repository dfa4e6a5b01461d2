"""The frame of the HTML pages: each is one file that fetches nothing and runs nothing."""

import base64
import html

# What a browser may load, whatever a page holds: pictures inside it, and its own style.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #444; vertical-align: bottom; }
img { max-width: 100%; }
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """A page for screens of any width.

    Args:
        title: plain text.
        body: HTML, in which all that is not ours has been escaped.
        style: CSS, after that of all pages.
    """
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def data_uri(picture: bytes, kind: str = "png") -> str:
    """The address of a picture that is inside a page; `kind`: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
