"""A packet as a form with a line for each field."""

import re
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from skblab.packet import Packet
from skblab.tui.layout import Field, layout

Changes = list[tuple[str, str]]


class EditForm(ModalScreen[None]):
    """Passes the changes to *take*, in the form of an edit rule: ``[("icmp.seq", "7")]``."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Leave it")]

    def __init__(self, packet: Packet, title: str, first: str, take: Callable[[Changes], None]) -> None:
        super().__init__()
        self._fields = [field for layer in layout(packet) for field in layer.fields if field.text is not None]
        self._title = title
        self._first = first
        self._take = take

    def compose(self) -> ComposeResult:
        """Yield a line for each field."""
        width = max((len(field.name) for field in self._fields), default=0)
        with Vertical(classes="dialog form") as box:
            box.border_title = self._title
            box.border_subtitle = "Enter writes it into the kernel, Escape leaves it"
            with VerticalScroll():
                for field in self._fields:
                    with Horizontal(classes="field"):
                        yield Label(f"{field.name:>{width}} = ", markup=False)
                        yield Input(field.text, id=_id(field), compact=True)
            yield Label("Lengths and checksums follow, unless they are typed in here.", classes="hint")

    def on_mount(self) -> None:
        """Focus the chosen field."""
        chosen = next((field for field in self._fields if field.name == self._first), None)
        if chosen:
            self.query_one(f"#{_id(chosen)}").focus()

    def on_input_submitted(self) -> None:
        """Pass the changed fields to *take*."""
        changes = []
        for field in self._fields:
            typed = self.query_one(f"#{_id(field)}", Input).value
            if typed != field.text:
                changes.append((field.name, typed))
        self.dismiss()
        self._take(changes)


def _id(field: Field) -> str:
    return f"f-{re.sub(r'[.:]', '-', field.name)}-{field.first}"
