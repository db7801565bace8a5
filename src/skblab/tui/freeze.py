"""Stop the whole kernel when a held packet enters its function."""

from skblab.agent.functions import plain_packet
from skblab.agent.packets import HeldPacket
from skblab.lab import Lab

REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")  # System V ABI, AMD64: argument registers
ENTRY_BYTES = 5  # the agent calls a released packet's function behind its NOPs (kernel/agent/agent.h agent_call())


def freezing(lab: Lab, held: HeldPacket) -> list[str]:
    """Return gdb commands that continue until a packet, about to be released, enters its function."""
    function = lab.image.functions.lookup(held.function)
    assert function
    packet = plain_packet(function)
    assert packet
    register = REGISTERS[packet.number]
    return [
        f"tbreak *{function.address + ENTRY_BYTES:#x} if ${register} == {held.skb:#x}",
        "continue",
        f"list {function.name}",
        "skb",
    ]
