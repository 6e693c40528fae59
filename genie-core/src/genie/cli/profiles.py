"""``genie calibrate`` and ``genie profile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from genie import config
from genie.calibration import FULL, QUICK, calibrate, reach
from genie.cli.printing import Json, err, escape, out, print_json
from genie.device import Device
from genie.errors import ConfigError
from genie.interfaces import Backend
from genie.plugins import registry
from genie.profile import Profile, Record, device_key, store

app = typer.Typer(no_args_is_help=True, help="What is known of how long operators take.")


def calibrate_devices(
    device: Annotated[list[str] | None, typer.Option(help="Its id; repeatable. Default: all there are.")] = None,
    node: Annotated[str, typer.Option(help="host:port of a node. Default: this machine.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="In seconds, less exactly.")] = False,
    as_json: Json = False,
) -> None:
    """Measure devices, and the link to their node, for the estimates of the scheduler."""
    resolved = config.resolve({"nodes": [node], "backend": "tcp"} if node else {"backend": "local", "nodes": []})
    settings = resolved.settings
    profile = Profile(settings.profile_dir)
    for problem in profile.load():
        err.print(escape(str(problem)))
    backend: Backend = registry.make("backend", settings.backends[0], settings)
    made: list[dict[str, Any]] = []
    try:
        for chosen in _chosen(backend, device or []):
            made.append(_calibrate(backend, chosen, profile, quick, as_json))
    finally:
        backend.close()
    written = profile.save()
    if as_json:
        print_json({"devices": made, "files": [str(path) for path in written]})
        return
    for row in made:
        _print_calibration(row)
    out.print(f"kept in {escape(str(profile.directory))}")


def _chosen(backend: Backend, wanted: list[str]) -> list[Device]:
    devices = backend.devices()
    if not wanted:
        return list(devices)
    found = []
    for name in wanted:
        match = next((each for each in devices if name in (each.id, each.id.rpartition("/")[2])), None)
        if match is None:
            raise ConfigError(
                f"there is no device {name!r}", hint=f"there are {', '.join(each.id for each in devices)}"
            )
        found.append(match)
    return found


def _calibrate(backend: Backend, device: Device, profile: Profile, quick: bool, quiet: bool) -> dict[str, Any]:
    started = time.monotonic()
    session = backend.connect(device)
    key = device_key(device)
    try:
        link = None
        if device.address is not None:
            link = reach(session, 1.0 if quick else 3.0)
            profile.connect(key, device.address, link)
        measured = calibrate(session, QUICK if quick else FULL, None if quiet else lambda what: err.print(escape(what)))
    finally:
        session.close()
    profile.calibrate(key, measured.calibration, measured.rows)
    return {
        "device": device.id,
        "hardware": device.hardware,
        "seconds": round(time.monotonic() - started, 1),
        "rows": len(measured.rows),
        "link": msgspec.to_builtins(link),
        "calibration": msgspec.to_builtins(measured.calibration),
    }


def _print_calibration(row: dict[str, Any]) -> None:
    out.print(
        f"\n[bold]{escape(row['device'])}[/bold] {escape(row['hardware'])}: {row['rows']} rows, {row['seconds']} s"
    )
    if row["link"]:
        link = row["link"]
        out.print(
            f"link: {link['latency'] * 1e6:.0f} µs, {link['up'] / 1e9:.2f} GB/s up, {link['down'] / 1e9:.2f} down"
        )
    table = Table("class", "samples", "error", "GFLOP/s", "GB/s", "overhead µs", box=None, pad_edge=False)
    calibration = row["calibration"]
    for name, fitted in sorted(calibration["classes"].items()):
        roof = fitted["roofline"]
        table.add_row(
            escape(name),
            str(fitted["samples"]),
            f"{fitted['error']:.0%}",
            f"{roof['compute'] * calibration['compute_tflops'] * 1e3:.3g}",
            f"{roof['memory'] * calibration['memory_bandwidth_gb_s']:.3g}",
            f"{roof['overhead'] * 1e6:.3g}",
        )
    Console(highlight=False, width=max(out.width, 100)).print(table)


@app.command("show")
def show(
    device: Annotated[str, typer.Option(help="Part of its name. Default: all.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Operators shown per device.")] = 30,
    as_json: Json = False,
) -> None:
    """What was measured, the operators that took most time first."""
    records = [record for record in _records() if device in record.key]
    if as_json:
        print_json(msgspec.to_builtins(records))
        return
    if not records:
        out.print("nothing was measured yet: `genie calibrate` does it, and programs do it as they run")
    for record in records:
        _print_record(record, limit)


def _print_record(record: Record, limit: int) -> None:
    when = time.strftime("%Y-%m-%d", time.localtime(record.calibrated)) if record.calibration else "never"
    out.print(f"\n[bold]{escape(record.key)}[/bold]: {len(record.rows)} rows, calibrated {when}")
    table = Table("operator", "phase", "shapes", "dtype", "count", "typical µs", "error", box=None, pad_edge=False)
    for row in sorted(record.rows, key=lambda row: row.count * row.mean, reverse=True)[:limit]:
        shapes = " ".join("×".join(map(str, each.shape)) or "·" for each in row.operands)
        spread = (row.variance / row.count) ** 0.5 / row.typical if row.typical else 0.0
        dtypes = " ".join(dict.fromkeys(each.dtype for each in row.operands))
        cells = (row.target, row.phase, shapes, dtypes, str(row.count), f"{row.typical * 1e6:.3g}", f"{spread:.0%}")
        table.add_row(*map(escape, cells))
    Console(highlight=False, width=max(out.width, 120)).print(table)


@app.command("clear")
def clear(
    device: Annotated[str, typer.Option(help="Part of its name. Default: all.")] = "",
    as_json: Json = False,
) -> None:
    """Forget what was measured, files that cannot be read included."""
    gone = []
    for path in store.paths(_directory()):
        if device:
            try:
                if device not in store.read(path).key:
                    continue
            except store.UNREADABLE:
                continue
        path.unlink(missing_ok=True)
        gone.append(str(path))
    if as_json:
        print_json({"removed": gone})
    else:
        out.print(f"{len(gone)} removed")


@app.command("export")
def export(file: Path, as_json: Json = False) -> None:
    """Write all that was measured to FILE, as JSON."""
    records = _records()
    data = msgspec.json.format(msgspec.json.encode(records, order="deterministic"), indent=1)
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror or error}", where=str(file)) from error
    if as_json:
        print_json({"file": str(file), "devices": len(records)})
    else:
        out.print(f"{len(records)} devices, in {escape(str(file))}")


def _records() -> list[Record]:
    found = []
    for path in store.paths(_directory()):
        try:
            found.append(store.read(path))
        except store.UNREADABLE as error:
            err.print(escape(str(error)))
    return found


def _directory() -> Path:
    return Profile(config.resolve().settings.profile_dir).directory
