"""Hex dumps in tcpdump's format."""


def hex_lines(data: bytes) -> list[str]:
    """Return a dump as ``tcpdump -X`` prints it."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        words = " ".join(row[pair : pair + 2].hex() for pair in range(0, len(row), 2))
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"0x{at:04x}:  {words:39}  {text}")
    return lines
