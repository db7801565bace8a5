"""The keys, in as many lines as the screen's width needs; each can be clicked."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.widgets import Static


class Keys(Static):
    """A footer that wraps instead of being cut off."""

    def __init__(self, bindings: Iterable[Binding]) -> None:
        shown = [
            f"[@click=app.{binding.action}][b]{binding.key_display or binding.key}[/b]\N{NO-BREAK SPACE}"
            f"[dim]{binding.description.replace(' ', chr(0xA0))}[/dim][/]"
            for binding in bindings
            if binding.show
        ]
        super().__init__("  ".join(shown), id="keys")
