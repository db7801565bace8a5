"""A scenario in a file of TOML: its words, its guest, as the table ``[lab]``, and the digest of what is long."""

import dataclasses
import hashlib
import shlex
from typing import cast, get_args

from skblab import toml
from skblab.errors import UsageError
from skblab.image.image import Image
from skblab.image.store import is_of_store, open_named
from skblab.spec import CONSOLES, LabFields, LabSpec, Stops, Time

LAB = "lab"
TYPED = {"consoles": 0, "timeout_s": 0.0}  # values of the types of those fields whose default has another
OF_LAB = {field.name: field.default for field in dataclasses.fields(LabSpec) if field.name not in {"commands", "image"}}


def digest(content: str | bytes) -> str:
    """Return the SHA-256 of a text, or of bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def words(client: object) -> tuple[str, ...]:
    """Return a command's words: of a list, or of one text as a shell has it.

    :raises UsageError: it is no command
    """
    if not isinstance(client, str):
        return cast("tuple[str, ...]", toml.typed("client", client, ()))
    try:
        return tuple(shlex.split(client))
    except ValueError as error:
        raise UsageError("the client is no command", found=f"{client}: {error}", hint="a list of words") from None


def lab_spec(where: str, table: toml.Table, servers: tuple[str, ...]) -> LabSpec:
    """Return the guest that a table ``[lab]`` describes: the fields of LabSpec.

    :param servers: its commands
    :raises UsageError: a key or a value makes no sense
    :raises ImageMissing: it names an image that is not there
    """
    if "commands" in table:
        raise UsageError(f"{where}: what runs in the guest stands above [{LAB}]", hint='servers = ["..."]')
    toml.known(f"{where}: [{LAB}]", table, (*OF_LAB, "image"))
    fields: toml.Table = {}
    for key, value in table.items():
        like = TYPED.get(key, OF_LAB.get(key, ""))
        like = () if key == "link" and isinstance(value, list) else like
        fields[key] = toml.typed(key, value, like)
    for key, wanted in (("time", get_args(Time)), ("clock", get_args(Stops))):
        if fields.get(key, wanted[0]) not in wanted:
            raise UsageError(f"{where}: no such {key}: {fields[key]}", hint=f"one of: {', '.join(wanted)}")
    if "image" in fields:
        fields["image"] = open_named(fields["image"])
    return LabSpec(**cast("LabFields", fields | {"commands": servers}))


def lab_table(spec: LabSpec) -> toml.Table:
    """Return a guest as a table ``[lab]``: what ``lab_spec()`` reads. Its commands are not in it.

    An image of the store is named by its series and variant, another one by its directory.
    """
    defaults = OF_LAB | {"consoles": CONSOLES[spec.time]}
    fields: toml.Table = {
        name: getattr(spec, name) for name, default in defaults.items() if getattr(spec, name) != default
    }
    if spec.link == ("auto",):
        del fields["link"]
    if path := spec.image_path:
        image = Image.open(path)
        variant = {"variant": image.variant} if image.variant != OF_LAB["variant"] else {}
        fields = {"series": image.series} | variant | fields
        if not is_of_store(path):
            fields["image"] = str(path)
    elif "series" not in fields:
        fields = {"series": spec.series} | fields
    return fields
