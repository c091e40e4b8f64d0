"""Shares the prepare pass of a new run out among several hosts.

    share_out(sources, spec, cache, reporter, unkept)      # process 0
    help_out(job, config, reporter)                        # every other one, with what `share_out` sent

Each process reads and decodes its share of the listed files. Where the hosts share the cache, it then knows all of them, and
each image was decoded once in all. Where each host has a cache of its own, process 0 decodes what its cache lacks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from kresume.backend import hosts
from kresume.evaluation.caches import open_cache
from kresume.images.cache import Cache
from kresume.images.collect import Sources
from kresume.images.prepare import prepare
from kresume.options.resolve import cache_limit
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.training.plan.images import list_sources
from kresume.values.decode_spec import DecodeSpec

PREPARE = "prepare"


def share_out(
    sources: Sources, spec: DecodeSpec, cache: Cache | None, reporter: Reporter, unkept: Collection[str]
) -> None:
    """Lets every process prepare its share of the listed files, if there are several.

    Args:
        sources: the listed files.
        spec: how they are decoded.
        cache: filled with them.
        reporter: shown progress.
        unkept: SHA-256s of dropped images, of which no cache keeps anything.
    """
    if hosts.joined().alone or cache is None:
        return
    hosts.send({PREPARE: {"spec": asdict(spec), "unkept": sorted(unkept)}})
    _prepare_share(sources, spec, cache, reporter, unkept)
    hosts.meet()
    cache.refresh()


def help_out(job: dict[str, Any], config: TrainConfig, reporter: Reporter) -> None:
    """Prepares the share of a process that follows.

    Args:
        job: as `share_out` sent it.
        config: the options of the run, with the paths of its images.
        reporter: shown progress.
    """
    decoding = DecodeSpec(**job["spec"])
    cache = open_cache(decoding, settings_of(config).cache, cache_limit(config))
    if cache is not None:
        _prepare_share(list_sources(config, reporter), decoding, cache, reporter, job["unkept"])
    hosts.meet()


def _prepare_share(
    sources: Sources, spec: DecodeSpec, cache: Cache, reporter: Reporter, unkept: Collection[str]
) -> None:
    process = hosts.joined()
    files = [found for listing in sources for found in listing.files][process.index :: process.count]
    label = f"preparing 1/{process.count} of the images"
    prepare(files, spec, cache, reporter, label=label, unkept=frozenset(unkept))
