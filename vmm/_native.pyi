"""The cffi module built from native/build.py."""

from typing import Any

ffi: Any
lib: Any
