"""References: distribution/reference's grammar and Docker's short forms."""

from __future__ import annotations

import time

import pytest

from vmm.image.reference import familiar, parse
from vmm.model.errors import UsageError

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("typed", "normal", "short"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:2", "localhost:5000/app:2", "localhost:5000/app:2"),
        ("host:5000/a/b", "host:5000/a/b:latest", "host:5000/a/b:latest"),
        ("Example.COM/a", "Example.COM/a:latest", "Example.COM/a:latest"),
        ("[fd00::1]:5000/a", "[fd00::1]:5000/a:latest", "[fd00::1]:5000/a:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"b:1@{DIGEST}", f"docker.io/library/b:1@{DIGEST}", f"b:1@{DIGEST}"),
        ("a__b/c.d/e--f", "docker.io/a__b/c.d/e--f:latest", "a__b/c.d/e--f:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
    ],
)
def test_normal_and_familiar_form(typed: str, normal: str, short: str) -> None:
    assert str(parse(typed)) == normal
    assert familiar(normal) == short
    assert str(parse(short)) == normal


def test_another_default_domain() -> None:
    assert str(parse("app", "hub.example")) == "hub.example/app:latest"
    assert parse("app", "hub.example").familiar("hub.example") == "app:latest"
    assert familiar("docker.io/library/busybox:1", "hub.example") == "docker.io/library/busybox:1"


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "Busybox",
        "a/Bc",
        "../x",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "-a",
        "a_-b",
        "a___b",
        "a:",
        "a:-x",
        "a:" + "x" * 129,
        "a@sha256:abc",
        "a@md5:" + "a" * 64,
        "a@sha256:" + "A" * 64,
        "sha256:../../etc/passwd",
        "a b",
        "a\n",
        "a:b\n",
        "a\0",
        "x" * 256,
        "x" * 100_000,
        "a" * 64,
        "ex_ample.com/a",
        "..%2f",
        "é",
        ":tag",
        "@" + DIGEST,
    ],
)
def test_refused(wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(wrong)
    assert len(str(caught.value)) < 600


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="must be lowercase"):
        parse("Foo")
    with pytest.raises(UsageError, match="cannot specify 64-byte hexadecimal"):
        parse("f" * 64)
    with pytest.raises(UsageError, match="more than 255"):
        parse("/".join(["abcdefgh"] * 40))


def test_no_input_takes_long() -> None:
    start = time.process_time()
    for text in ("a" * 1000 + "!", "a_" * 500, "a-" * 500 + "/", "a.a" * 300 + ":" * 20):
        with pytest.raises(UsageError):
            parse(text)
    assert time.process_time() - start < 0.5
