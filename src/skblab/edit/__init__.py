"""Changes of a packet's bytes: what was named changes, lengths and checksums follow, and all the rest stays.

``edited`` makes a change. ``changing`` is the change that a rule names. ``difference`` says what is different.
"""

from skblab.edit.build import Edited, edited
from skblab.edit.difference import difference
from skblab.edit.named import changing, fault
from skblab.edit.pending import WHOLE, Checksum

__all__ = ["WHOLE", "Checksum", "Edited", "changing", "difference", "edited", "fault"]
