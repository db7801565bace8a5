"""One packet in full: its layers as a tree, its bytes in hex, those of the chosen field highlighted."""

from typing import TYPE_CHECKING

from rich.text import Text
from textual.containers import VerticalScroll
from textual.widgets import Static, Tree

from skblab.packet import Packet
from skblab.tui.layout import Field, Layer, layout

if TYPE_CHECKING:
    from textual.widgets.tree import TreeNode

WIDE_HEX, NARROW_HEX = 16, 8  # bytes per line
WIDE_COLUMNS = 73  # width of a line of 16 bytes
LIT = "bold reverse"


class Layers(Tree[Field | Layer]):
    """The layers of a packet, and the fields of each."""

    def __init__(self) -> None:
        super().__init__("", id="layers")
        self.show_root = False
        self.guide_depth = 2

    def show(self, packet: Packet | None, place: str) -> None:
        """Show a packet and the function that holds it; the cursor stays on the field of the same name."""
        node = self.cursor_node
        name = node.data.name if node and node.data else ""
        self.border_title = place
        self.clear()
        wanted: TreeNode[Field | Layer] | None = None
        for layer in layout(packet) if packet else ():
            label = Text.assemble((layer.name, "bold"), (f"  {layer.end - layer.first} bytes", "dim"))
            branch = self.root.add(label, data=layer, expand=True)
            wanted = branch if layer.name == name else wanted
            width = max((len(field.short) for field in layer.fields), default=0)
            for field in layer.fields:
                label = Text.assemble((f"{field.short:{width}}  ", "cyan"), field.shown)
                leaf = branch.add_leaf(label, data=field)
                wanted = leaf if field.name == name else wanted
        self.root.expand()
        if wanted:
            self.call_after_refresh(self.move_cursor, wanted)

    @property
    def chosen(self) -> Field | Layer | None:
        """The field or layer under the cursor."""
        return self.cursor_node.data if self.cursor_node else None


class Hex(VerticalScroll):
    """A packet's bytes."""

    def __init__(self) -> None:
        super().__init__(Static("", id="bytes", markup=False), id="hex")
        self._data = b""
        self._lit: tuple[int, int] = (0, 0)

    def show(self, packet: Packet | None) -> None:
        """Show a packet's bytes."""
        self._data = packet.data if packet else b""
        self.border_title = f"{len(self._data)} bytes"
        self._draw()

    def light(self, part: Field | Layer | None) -> None:
        """Highlight the bytes of a field."""
        self._lit = (part.first, part.end) if part else (0, 0)
        name = f"  {part.name}: {part.end - part.first} from {part.first}" if part else ""
        self.border_title = f"{len(self._data)} bytes{name}"
        self._draw()
        line = self._lit[0] // self._width
        if not self.scroll_y <= line < self.scroll_y + self.size.height:
            self.scroll_to(y=line, animate=False)

    def on_resize(self) -> None:
        """Adapt the width of the dump."""
        self._draw()

    @property
    def _width(self) -> int:
        return WIDE_HEX if self.size.width >= WIDE_COLUMNS else NARROW_HEX

    def _draw(self) -> None:
        self.query_one("#bytes", Static).update(hex_text(self._data, self._lit, self._width))


def hex_text(data: bytes, lit: tuple[int, int], width: int) -> Text:
    """Return a hex dump with a part of the bytes highlighted."""
    first, end = lit
    text = Text()
    for start in range(0, len(data), width):
        line = data[start : start + width]
        numbers, letters = Text(), Text()
        for at, byte in enumerate(line, start):
            style = LIT if first <= at < end else ""
            joined = style and at + 1 < end and at + 1 < start + len(line)
            numbers.append(f"{byte:02x}", style=style)
            numbers.append("  " if at % 8 == 7 else " ", style=style if joined else "")
            printable = 0x20 <= byte < 0x7F
            letters.append(chr(byte) if printable else ".", style=style or ("" if printable else "dim"))
        numbers.pad_right(3 * width + width // 8 - len(numbers))
        text.append(f"{start:04x}  ", style="dim")
        text.append_text(numbers)
        text.append_text(letters)
        text.append("\n")
    return text
