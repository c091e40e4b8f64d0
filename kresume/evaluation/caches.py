"""Opens the cache of decoded pictures that an option or argument names."""

from __future__ import annotations

from pathlib import Path

from kresume.images.cache import Cache
from kresume.options.resolve import default_cache_limit
from kresume.storage.one_file import require_local
from kresume.values.decode_spec import DecodeSpec


def open_cache(
    spec: DecodeSpec, where: str | None, limit_bytes: int | None = None, *, writes: bool = True
) -> Cache | None:
    """Opens the cache of decoded pictures.

    Args:
        spec: how its pictures are decoded.
        where: `"auto"` or None for the usual folder, `"off"` for none, or a folder.
        limit_bytes: the requested limit; None for the last one that was requested, else the default.
        writes: False creates no folder, for a command that only looks.

    Returns:
        None if it is off.

    Raises:
        ImagesError: the folder cannot be created.
        UsageError: `where` is an address.
    """
    require_local("cache", where)
    if where == "off":
        return None
    root = None if where in {None, "auto"} else Path(str(where))
    return Cache.open(spec, root, limit_bytes, otherwise=default_cache_limit(), writes=writes)
