"""Changes of a packet's bytes: the named fields change, lengths and checksums follow, everything else stays.

``edited`` makes a change. ``changing`` returns the change that a rule names, ``corrupting`` one that the receiver's
checksum finds. ``difference`` lists what differs.
"""

from skblab.edit.build import Edited, edited
from skblab.edit.corrupt import corrupting
from skblab.edit.difference import difference
from skblab.edit.named import changing, fault
from skblab.edit.pending import WHOLE, Checksum

__all__ = ["WHOLE", "Checksum", "Edited", "changing", "corrupting", "difference", "edited", "fault"]
