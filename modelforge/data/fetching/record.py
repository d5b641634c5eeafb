"""Zenodo records: the address, checksum and size of a file that are not registered."""

from dataclasses import replace

from pydantic import BaseModel, ValidationError

from modelforge.data.fetching.registry import RemoteFile
from modelforge.data.fetching.transfer import content_of, rebased
from modelforge.errors import UserError


class Entry(BaseModel):
    """A file in the metadata of a record."""

    key: str
    size: int
    checksum: str


class Record(BaseModel):
    """The metadata of a record, as far as needed."""

    files: list[Entry]


def known_to_the_record(file: RemoteFile, *, base_url: str | None) -> RemoteFile:
    """The file with the address, checksum and size from its Zenodo record, where they are not registered."""
    if file.record is None or file.md5:
        return file
    url = rebased(f"https://zenodo.org/api/records/{file.record}", base_url)
    try:
        entries = Record.model_validate_json(content_of(url)).files
    except ValidationError as error:
        raise UserError(f"{url}: the answer is no metadata of a record: {error.errors()[0]['msg']}; try again later") from error
    name = file.urls[0].rpartition("/")[2] if file.urls else None
    fitting = [entry for entry in entries if entry.key == name or (name is None and entry.key.endswith(".hdf5.gz"))]
    if len(fitting) != 1:
        listed = ", ".join(entry.key for entry in entries)
        raise UserError(f"{url}: the record must hold one file {name or '*.hdf5.gz'} (got {listed}); it may have been changed")
    (entry,) = fitting
    address = f"https://zenodo.org/records/{file.record}/files/{entry.key}"
    return replace(file, urls=(address,), md5=entry.checksum.removeprefix("md5:"), size=entry.size)
