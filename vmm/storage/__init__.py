"""Storage: layers and copy-on-write roots, volumes, and archives that cannot escape."""
