"""Dialogs: a line of input, and the message that the guest is gone."""

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from skblab.errors import SkblabError


class Ask(ModalScreen[None]):
    """One line of input, passed to *take*. If *take* raises, the error is shown and the line stays."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Leave it")]

    def __init__(self, title: str, hint: str, value: str, take: Callable[[str], None]) -> None:
        super().__init__()
        self._title, self._hint, self._value, self._take = title, hint, value, take

    def compose(self) -> ComposeResult:
        """Yield the parts."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            box.border_subtitle = "Enter does it, Escape leaves it"
            yield Input(self._value, compact=True)
            yield Static(self._hint, classes="hint", markup=False)
            yield Static("", classes="trouble", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Pass the line to *take*."""
        try:
            self._take(event.value.strip())
        except SkblabError as error:
            self.query_one(".trouble", Static).update(str(error))
        else:
            self.dismiss()


class Lost(ModalScreen[None]):
    """The guest's kernel has ended: why, and the end of its log on demand."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "log", "Log"),
        Binding("q,escape", "quit", "Quit"),
    ]

    def __init__(self, error: SkblabError, leave: Callable[[], None]) -> None:
        super().__init__()
        self._error = error
        self._leave = leave

    def compose(self) -> ComposeResult:
        """Yield the parts."""
        with Vertical(classes="dialog lost") as box:
            box.border_title = "guest lost"
            yield Static(self._error.what, markup=False)
            yield Static("What was held is lost with it.", classes="hint")
            with VerticalScroll(id="log"):
                yield Static(self._error.found, markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Log (l)", id="show-log", compact=True)
                yield Button("Quit (q)", id="leave", compact=True, variant="primary")

    def on_mount(self) -> None:
        """Focus Quit, so that Enter quits."""
        self.query_one("#log").display = False
        self.query_one("#leave").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Do the same as the key."""
        if event.button.id == "show-log":
            self.action_log()
        else:
            self._leave()

    def action_log(self) -> None:
        """Show or hide the log."""
        log = self.query_one("#log")
        log.display = not log.display

    def action_quit(self) -> None:
        """Leave the program."""
        self._leave()
