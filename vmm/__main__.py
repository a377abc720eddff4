"""``python -m vmm``."""

from vmm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
