"""``.dockerignore``: which paths of a build context are left out.

Lines are Go file patterns plus ``**``; ``!`` takes a path back in; the last line that
matches a path, or one of its parents, decides (Docker's reference, ".dockerignore file").
"""

from __future__ import annotations

import posixpath

from vmm.dockerfile.pattern import BadPattern, Matcher, parents_of, tokens
from vmm.model.errors import InvalidDocument

#: Bytes of an ignore file.
MAX_SIZE = 1 << 20


def read_patterns(text: str) -> list[str]:
    """The patterns of an ignore file, cleaned; comments and empty lines dropped."""
    patterns = []
    for line in text.removeprefix("\ufeff").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        pattern = line.strip()
        mark = "!" if pattern.startswith("!") else ""
        pattern = pattern[len(mark) :].strip()
        if pattern:
            pattern = clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append(mark + pattern)
    return patterns


def clean(path: str) -> str:
    """filepath.Clean of Go: ``//a`` has one root, the empty path is ``.``."""
    cleaned = posixpath.normpath(path)
    return "/" + cleaned.lstrip("/") if cleaned.startswith("/") else cleaned


class Pattern:
    """One line. ``kind``: how it is matched (exact, prefix, suffix or regexp)."""

    def __init__(self, text: str) -> None:
        self.excludes = not text.startswith("!")
        self.text = text.removeprefix("!")
        if not self.text:
            raise BadPattern('illegal exclusion pattern: "!"')
        tokens(self.text)
        self._matcher = Matcher(tokens(self.text, double_star=True))
        self.kind = self._kind()
        self.regexp = self._matcher.regexp if self.kind == "regexp" else ""

    def _kind(self) -> str:
        kinds = [token.kind for token in self._matcher.tokens]
        special = [kind for kind in kinds if kind != "char"]
        if not special and "\\" not in self.text:
            return "exact"
        if special == ["all"] and "\\" not in self.text:
            return "suffix" if self.text.strip("/") == "**" else "prefix"
        if special == ["dirs"] and kinds[0] == "dirs" and "\\" not in self.text:
            return "suffix"
        return "regexp"

    def matches(self, path: str) -> bool:
        """Whether ``path`` or one of its parents matches."""
        if self.kind == "regexp":
            return self._matcher.matches(path, parents=True)
        return any(map(self._plain, (path, *parents_of(path))))

    def _plain(self, path: str) -> bool:
        if self.kind == "exact":
            return path == self.text
        if self.kind == "prefix":
            return path.startswith(self.text.removesuffix("/").removesuffix("**"))
        suffix = self.text[2:]
        return path.endswith(suffix) or (suffix.startswith("/") and path == suffix[1:])


class Ignore:
    """The patterns of one file, in order."""

    def __init__(self, patterns: list[str], name: str = ".dockerignore") -> None:
        self.patterns: list[Pattern] = []
        faults = []
        for pattern in patterns:
            stripped = pattern.strip()
            if not stripped:
                continue
            try:
                self.patterns.append(Pattern(clean(stripped)))
            except BadPattern as error:
                faults.append(str(error))
        if faults:
            raise InvalidDocument(name, faults)
        self._includes = [p.text + "/" for p in self.patterns if not p.excludes]

    def excluded(self, path: str) -> bool:
        """Whether ``path`` (relative, no leading slash) is left out, itself or by a parent."""
        left_out = False
        for pattern in self.patterns:
            if pattern.excludes == left_out:
                continue
            if pattern.matches(path):
                left_out = pattern.excludes
        return left_out

    def may_contain(self, directory: str) -> bool:
        """Whether a ``!`` line may take back something below the excluded ``directory``."""
        prefix = directory + "/"
        return any(text.startswith(prefix) for text in self._includes)
