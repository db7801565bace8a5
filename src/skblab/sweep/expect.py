"""What a scenario expects of its outcome."""

import math
import re
from dataclasses import dataclass, fields
from typing import Literal, get_args

from skblab.errors import UsageError

End = Literal["ended", "hung", "died", "lost"]
OF_THE_END = (
    "status", "stdout", "stderr", "stdout_sha256", "stderr_sha256", "stdout_has", "stderr_has", "files", "duration_s",
    "listening",
)  # fmt: skip
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What has to be true of an outcome. What is None, or empty, is not looked at.

    :param end: how the run ends; of one that has not ended, nothing of OF_THE_END is known
    :param status: the client's
    :param stdout: all that the client writes there, like *stderr*
    :param stdout_sha256: the digest of that, for long texts
    :param stdout_has: texts that stand in it
    :param files: paths in the guest, and the digest of what is in each; "": there is no such file
    :param duration_s: of the client, in virtual time: at least, at most
    :param counters: names, as ``CellOutcome.counters`` has them, and the least and the highest value
    :param listening: where servers listen in the guest afterwards, as ``CellOutcome.listening`` has them
    :param complaints: the guest's kernel may complain
    :param fired: each rule has to fire
    """

    end: End = "ended"
    status: int | None = 0
    stdout: str | None = None
    stderr: str | None = None
    stdout_sha256: str = ""
    stderr_sha256: str = ""
    stdout_has: tuple[str, ...] = ()
    stderr_has: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    duration_s: tuple[float, float] = (0.0, math.inf)
    counters: tuple[tuple[str, int, int], ...] = ()
    listening: tuple[str, ...] = ()
    complaints: bool = False
    fired: bool = True

    def __post_init__(self) -> None:
        if self.end not in get_args(End):
            raise UsageError(f"no run ends so: {self.end}", hint=f"one of: {', '.join(get_args(End))}")
        for what, digest in [
            ("stdout_sha256", self.stdout_sha256), ("stderr_sha256", self.stderr_sha256), *self.files,
        ]:  # fmt: skip
            if digest and not SHA256.fullmatch(digest):
                raise UsageError(f"{what}: no SHA-256: {digest}", hint="64 digits: sha256sum FILE")
        if "" in (*self.stdout_has, *self.stderr_has):
            raise UsageError("stdout_has, stderr_has: an empty text stands in everything")
        usual = {field.name: field.default for field in fields(self)}
        if self.end != "ended" and (
            unknown := [name for name in OF_THE_END if getattr(self, name) not in {None, usual[name]}]
        ):
            raise UsageError(f"{unknown[0]} is known of a client that has ended, not of one that {self.end}")
        for path, _ in self.files:
            if not path.startswith("/"):
                raise UsageError(f"a file of the guest has its whole path: {path}", hint="/root/result")
        for what, least, most in (("duration_s", *self.duration_s), *self.counters):
            if not least <= most:
                raise UsageError(f"{what}: nothing is at least {least:g} and at most {most:g}")
