"""Frozen typed values: no I/O, and no import of any other part of vmm."""
