"""The Dockerfile language: pure text in, typed values out; no files are touched.

``parse`` gives the instructions of a file as written (parser.py), ``analyse`` the
checked stages of typed commands (stages.py).  Words and substitution are in
words.py, Go's file patterns in pattern.py, ``.dockerignore`` in ignore.py.
"""

from vmm.dockerfile.parser import Dockerfile, Instruction, parse
from vmm.dockerfile.stages import Program, Stage, analyse

__all__ = ["Dockerfile", "Instruction", "Program", "Stage", "analyse", "parse"]
