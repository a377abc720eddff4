"""Builds the native core: the cffi module, and the static programs into ``vmm/libexec``."""

import os
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PROGRAMS = {"vmm-shim": "shim", "vmm-relay": "relay", "vmm-init": "init"}
FLAGS = [
    flag
    for line in (ROOT / "native/flags.txt").read_text().splitlines()
    if not line.startswith("#")
    for flag in line.split()
]


class BuildPrograms(Command):
    """Compile each program of ``native/`` with its library, statically."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        compiler = os.environ.get("CC", "cc").split()
        target = ROOT / "vmm" / "libexec"
        target.mkdir(exist_ok=True)
        library = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "native/lib").glob("*.c"))
        for program, folder in PROGRAMS.items():
            own = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "native" / folder).glob("*.c"))
            output = str(target / program)
            self.spawn([*compiler, *FLAGS, "-Inative/lib", "-o", output, *own, *library])


class Build(build):
    sub_commands: ClassVar[Any] = [("build_programs", None), *build.sub_commands]


class BuildExt(build_ext):
    """An editable install needs the programs too."""

    def run(self) -> None:
        self.run_command("build_programs")
        super().run()


setup(
    cffi_modules=["native/build.py:ffibuilder"],
    cmdclass={"build": Build, "build_ext": BuildExt, "build_programs": BuildPrograms},
)
