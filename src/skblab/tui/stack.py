"""The backtrace of the chosen packet: the kernel's call frames when it was held, each with its source."""

from collections.abc import Iterable
from pathlib import Path

from rich.text import Text
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from skblab.image.image import Image
from skblab.image.unwind import Frame

AROUND = 2  # source lines before and after the one of the call


class Stack(Tree[Frame]):
    """A backtrace; a frame opens to its source."""

    def __init__(self, image: Image) -> None:
        super().__init__("", id="stack")
        self.show_root = False
        self.guide_depth = 2
        self.border_title = "stack"
        self._image = image

    def show(self, frames: Iterable[Frame] | None) -> None:
        """Show a backtrace; None: it is not known yet."""
        self.clear()
        shown = list(frames or ())
        self.border_title = f"called by: {len(shown) - 1} frames" if shown else "stack"
        for number, frame in enumerate(shown):
            style = "dim" if frame.inlined else ""
            where = f"{Path(frame.file).name}:{frame.line}" if frame.file else ""
            label = Text.assemble(
                (f"{number:2} ", "dim"), (f"{frame.function}()", style or "cyan"), (f"  {where}", "dim")
            )
            node = self.root.add(label, data=frame, allow_expand=bool(frame.file))
            if number == 0:
                self._open(node)
                node.expand()
        self.root.expand()
        self.scroll_home(animate=False)

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Frame]) -> None:
        """Show the source of a frame."""
        if event.node.data and not event.node.children:
            self._open(event.node)

    def _open(self, node: TreeNode[Frame]) -> None:
        frame = node.data
        assert frame
        lines = self._image.source_lines(frame.file, frame.line, around=AROUND)
        for number, text in lines:
            style = "bold" if number == frame.line else "dim"
            node.add_leaf(Text(f"{number:5} {text.expandtabs(4)}", style=style), data=frame)
        if not lines:
            node.add_leaf(Text("the image has no such source", style="dim italic"), data=frame)
