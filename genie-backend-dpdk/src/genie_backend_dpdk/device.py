"""The setting ``dpdk_device``: what carries the packets."""

from __future__ import annotations

from genie.errors import BackendUnavailable, ConfigError

MEMIF = "vdev:memif"
_PLANNED = ("vdev:af_packet", "pci")


def check(device: str) -> None:
    """Raises :class:`ConfigError` for what is no device, :class:`BackendUnavailable` for one that this version does not
    drive."""
    kind, _, rest = device.partition(",")
    if device == MEMIF:
        return
    if kind in _PLANNED or kind.startswith("pci:"):
        raise BackendUnavailable(
            f"this version drives no device {device!r}",
            where="setting 'dpdk_device'",
            hint=f'{MEMIF} joins processes of one host; use the backend "tcp" for others',
        )
    raise ConfigError(
        f"{device!r} is no DPDK device" if not rest or kind != MEMIF else f"{MEMIF} takes no arguments, not {rest!r}",
        where="setting 'dpdk_device'",
        hint=f"give {MEMIF}",
    )
