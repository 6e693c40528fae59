"""Plans that a compiler makes one program of (:mod:`genie.compilers`), in place of their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import structlog

from genie.bindings import parameters
from genie.compilers import Compiler
from genie.config import Settings
from genie.device import Device
from genie.errors import GenieError, PluginError, UnsupportedOperation
from genie.graph import Abstract
from genie.plan import ExecutionPlan
from genie.plugins import registry
from genie_backend_local.native import NativeSession

_log = structlog.get_logger("genie.local")


class Engines:
    """The compilers of this process, by name. With ``bounded`` they are asked for programs alone that end whatever
    their data is: nothing stops a program that has begun."""

    def __init__(self, compilers: Mapping[str, Compiler], *, bounded: bool = False) -> None:
        self._compilers = compilers
        self._bounded = bounded

    @classmethod
    def installed(cls, settings: Settings) -> Engines:
        """Those offered by distributions here. One that cannot be made is left out, and the log says why."""
        made: dict[str, Compiler] = {}
        for name in registry.names("compiler") if settings.engine != "aten" else ():
            try:
                made[name] = registry.make("compiler", name, settings)
            except (GenieError, PluginError) as error:
                _log.warning("compiler left out", compiler=name, error=error.message)
        return cls(made, bounded=settings.execution_seconds > 0)

    def offered(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """The devices, each with the engines that serve it."""
        return tuple(msgspec.structs.replace(device, engines=self._of(device)) for device in devices)

    def _of(self, device: Device) -> tuple[str, ...]:
        return tuple(
            f"{name}:{kind}"
            for name, compiler in self._compilers.items()
            if compiler.serves(device)
            for kind in compiler.kinds
        )

    def load(self, session: NativeSession, number: int, plan: ExecutionPlan, device: Device) -> bool:
        """Whether ``plan`` is loaded compiled. Where that fails, its steps are to be run, unless the artifact is
        required: then raises what the compiler did."""
        wanted = plan.engine
        assert wanted is not None
        artifact = next(each for each in plan.graph.artifacts if each.kind == wanted.kind)
        try:
            compiler = self._compilers.get(wanted.name)
            if compiler is None or wanted.kind not in compiler.kinds:
                raise UnsupportedOperation(
                    f"{device.id} has no engine {wanted.name} for {wanted.kind}",
                    hint="install genie-compiler-xla with jaxlib there, or let the engine be auto",
                )
            program = compiler.compile(artifact, device, bounded=self._bounded)
        except GenieError as error:
            if wanted.required or artifact.required:
                raise
            _log.warning("not compiled: its steps are run", engine=wanted.name, reason=error.message)
            return False
        specs = plan.graph.values
        taken = [specs[plan.graph.inputs[at].value].dtype for at in artifact.takes]
        given = [specs[value].dtype for value in plan.graph.outputs]
        session.load_compiled(
            number,
            name=f"{wanted.name}::{artifact.digest[:16]}",
            program=program,
            bytes=program.bytes,
            donated=[entry.donated for entry in plan.graph.inputs],
            takes=artifact.takes,
            operands=_faces(artifact.operands, taken),
            results=_faces(artifact.results, given),
            parameters=parameters(plan.graph),
        )
        return True

    def close(self) -> None:
        for compiler in self._compilers.values():
            compiler.close()


def _faces(faces: Sequence[Abstract], carried: Sequence[str]) -> list[tuple[tuple[int, ...], str, str]]:
    return [(face.shape, face.dtype, its) for face, its in zip(faces, carried, strict=True)]
