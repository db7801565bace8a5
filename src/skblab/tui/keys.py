"""The keys, as many lines of them as the screen's width takes; each can be clicked."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.widgets import Static


class Keys(Static):
    """A footer that does not cut its end off."""

    def __init__(self, bindings: Iterable[Binding]) -> None:
        shown = [
            f"[@click=app.{binding.action}][b]{binding.key_display or binding.key}[/b]\N{NO-BREAK SPACE}"
            f"[dim]{binding.description.replace(' ', chr(0xA0))}[/dim][/]"
            for binding in bindings
            if binding.show
        ]
        super().__init__("  ".join(shown), id="keys")
