"""Narrow ports to the outside: files, programs, the kernel.  They import only the model."""
