"""Pages that are complete in themselves: no server, no network, no other file.

A page is NAME.html with NAME.css, NAME.js and data in it. Its script sets what comes from packets as text, never as
HTML; the page's policy allows this script and this style alone.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

from skblab import files

PLACE = re.compile(r"\{\{(\w+)\}\}")


def write(template: Path, title: str, data: object, path: Path) -> None:
    """Write a page to a new file.

    :param template: its NAME.html
    :raises CannotWrite: there is such a file, or it cannot be written
    """
    style, script = (template.with_suffix(kind).read_text() for kind in (".css", ".js"))
    words = {
        "title": html.escape(title),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = PLACE.sub(lambda place: words[place[1]], template.read_text())
    with files.whole(path, new=True) as file:
        file.write(page.encode())


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
