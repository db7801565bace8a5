"""Stop packets inside a running Linux kernel.

The public names. They are imported when they are first asked for: gdb loads a part of this package, and is not to wait
for the rest.
"""

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: a lab's first process starts with this
if TYPE_CHECKING:
    from skblab.agent.packets import HeldPacket
    from skblab.debugger.session import Debugger
    from skblab.errors import SkblabError
    from skblab.event import Hit
    from skblab.guest.complaint import Complaint
    from skblab.image.image import Image
    from skblab.lab import Lab
    from skblab.packet import Packet
    from skblab.policy import Policy
    from skblab.rule import Rule
    from skblab.session import Outcome, Session, Watcher
    from skblab.spec import LabSpec
    from skblab.view.rtts import Rtts

__all__ = [
    "Complaint", "Debugger", "HeldPacket", "Hit", "Image", "Lab", "LabSpec", "Outcome", "Packet", "Policy", "Rtts",
    "Rule", "Session", "SkblabError", "Watcher",
]  # fmt: skip

_HOMES = {
    "Complaint": "skblab.guest.complaint",
    "Debugger": "skblab.debugger.session",
    "HeldPacket": "skblab.agent.packets",
    "Hit": "skblab.event",
    "Image": "skblab.image.image",
    "Lab": "skblab.lab",
    "LabSpec": "skblab.spec",
    "Outcome": "skblab.session",
    "Packet": "skblab.packet",
    "Policy": "skblab.policy",
    "Rtts": "skblab.view.rtts",
    "Rule": "skblab.rule",
    "Session": "skblab.session",
    "SkblabError": "skblab.errors",
    "Watcher": "skblab.session",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home (PEP 562)."""
    from importlib import import_module  # noqa: PLC0415

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
