"""Several collateral services, asked one after the other: one that is away, behind or lying is not the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from marblerun.attestation.collect.pck import PckSource, describe_query
from marblerun.attestation.collect.source import Closable, CollateralSource, describe_key
from marblerun.attestation.model import Collateral, CollateralKey, PckQuery
from marblerun.errors import MarbleRunError, Unavailable

_log = logging.getLogger("marblerun.collateral")


class FallbackSource:
    """The first of ``sources`` that has collateral which passes ``accept``. Close it with :meth:`aclose`."""

    def __init__(
        self,
        sources: Sequence[CollateralSource],
        accept: Callable[[CollateralKey, Collateral], object],
        accept_pck: Callable[[str], object] = str,
    ) -> None:
        """``accept`` and ``accept_pck`` raise one of our errors for what is not good to use now."""
        self._sources = tuple(sources)
        self._accept = accept
        self._accept_pck = accept_pck

    async def fetch(self, key: CollateralKey) -> Collateral:
        """The collateral for ``key``.

        Raises:
            Unavailable: no source has it; what each one said.
        """
        failures: list[str] = []
        for source in self._sources:
            try:
                collateral = await source.fetch(key)
                self._accept(key, collateral)
            except MarbleRunError as error:
                failures.append(str(error))
                continue
            if failures:
                _log.warning("collateral for %s is from another source: %s", describe_key(key), "; ".join(failures))
            return collateral
        raise Unavailable("; ".join(failures) or f"there is no source of collateral for {describe_key(key)}")

    async def fetch_pck(self, query: PckQuery) -> str:
        """The PCK certificate chain for ``query``. Raises Unavailable, with what each source said."""
        failures: list[str] = []
        for source in self._sources:
            if not isinstance(source, PckSource):
                continue
            try:
                chain = await source.fetch_pck(query)
                self._accept_pck(chain)
                return chain
            except MarbleRunError as error:
                failures.append(str(error))
        raise Unavailable("; ".join(failures) or f"there is no source of PCK certificates for {describe_query(query)}")

    async def aclose(self) -> None:
        """Close all sources that can be closed."""
        for source in self._sources:
            if isinstance(source, Closable):
                await source.aclose()
