"""What somebody could read of all that was ever uploaded to a Hub of the tests."""

import json
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO

from .hub import Hub


def everything(hub: Hub) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of every commit, of every object, and of every file inside one of those."""
    for repository in hub.repositories.values():
        for files in repository.commits.values():
            for path, blob in files.items():
                yield from _unpacked(f"{repository.id}/{path}", blob.content)
        for oid, content in repository.objects.items():
            yield from _unpacked(f"{repository.id}/{oid}", content)


def _unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, name.encode() + b"\n" + content
    if zipfile.is_zipfile(BytesIO(content)):  # as torch saves
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for inner in archive.namelist():
                yield from _unpacked(f"{name}:{inner}", archive.read(inner))


def secrets_in(hub: Hub, secrets: Iterable[str]) -> set[tuple[str, str]]:
    """Which files hold which of the secrets, as text, or as JSON writes it."""
    spellings = {(secret, text.encode()) for secret in secrets for text in (secret, json.dumps(secret)[1:-1])}
    return {(name, secret) for name, content in everything(hub) for secret, text in spellings if text in content}
