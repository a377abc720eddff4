"""The walk-through: a Dockerfile becomes an image, the image a web server on a published port."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.instance import Instance

DOCKERFILE = """\
# a comment
FROM busybox
MAINTAINER Jo Doe <jo@example.org>
LABEL purpose=web \\
      tier="front end"
RUN echo built > /built && mkdir -p /srv/www
COPY index.html /srv/www/
VOLUME ["/srv/data", "/srv/log"]
EXPOSE 80
CMD ["httpd", "-f", "-p", "80", "-h", "/srv/www"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    directory.mkdir()
    (directory / "Dockerfile").write_text(DOCKERFILE)
    (directory / "index.html").write_text("<p>served</p>\n")
    return directory


def fetch(vmm: Instance, address: str, path: str = "/") -> str:
    """The page, once the server is up."""
    end = time.monotonic() + 10
    while True:
        done = vmm.inside("wget", "-q", "-T", "2", "-O", "-", f"http://{address}{path}")
        if done.returncode == 0 or time.monotonic() > end:
            return done.stdout
        time.sleep(0.05)


def test_from_dockerfile_to_web_page(vmm: Instance, context: Path, tmp_path: Path) -> None:
    first = vmm.out("build", "-t", "web", "-t", "web:1", str(context)).splitlines()
    assert first[0] == "Step 1/8 : FROM busybox"
    assert any(line.startswith(" ---> Running in ") for line in first)
    assert first[-2:] == ["Successfully tagged web:latest", "Successfully tagged web:1"]
    again = vmm.out("build", "-t", "web", str(context)).splitlines()
    assert again.count(" ---> Using cache") == 7
    image = json.loads(vmm.out("image", "inspect", "web"))[0]
    assert image["RepoTags"] == ["web:1", "web:latest"]
    assert image["Author"] == "Jo Doe <jo@example.org>"
    config = image["Config"]
    assert config["Labels"] == {"purpose": "web", "tier": "front end"}
    assert config["Volumes"] == {"/srv/data": {}, "/srv/log": {}}
    assert config["ExposedPorts"] == {"80/tcp": {}}
    assert len(image["RootFS"]["Layers"]) == 3  # busybox, RUN, COPY
    (tmp_path / "data").mkdir()
    (tmp_path / "log").mkdir()
    vmm.out(
        "run", "-d", "--rm", "--name", "web", "-p", "8080:80",
        "-v", f"{tmp_path}/data:/srv/data", "-v", f"{tmp_path}/log:/srv/log", "web",
    )  # fmt: skip
    assert fetch(vmm, "127.0.0.1:8080") == "<p>served</p>\n"
    assert fetch(vmm, "[::1]:8080") == "<p>served</p>\n"
    address = vmm.inspect("web")["NetworkSettings"]["IPAddress"]
    assert fetch(vmm, address) == "<p>served</p>\n"
    assert "127.0.0.1:8080->80/tcp" in vmm.out("ps")
    assert vmm.out("port", "web", "80") == "127.0.0.1:8080\n[::1]:8080"
    vmm.run("exec", "web", "sh", "-c", "echo kept > /srv/data/file")
    assert (tmp_path / "data" / "file").read_text() == "kept\n"
    refused = vmm.run("rmi", "-f", image["Id"], check=False)
    assert refused.returncode == 1 and "used by running container web" in refused.stderr
    vmm.run("stop", "-t", "1", "web")
    assert vmm.out("ps", "-aq") == ""
    done = vmm.out("rmi", "-f", "web", "web:1")
    assert "Untagged: web:latest" in done and "Deleted: sha256:" in done
    assert vmm.out("images", "-q", "web") == ""


def test_several_containers_do_one_task(vmm: Instance) -> None:
    vmm.run("run", "-d", "--name", "source", "busybox", "sh", "-c",
            "mkdir /w; echo from the source > /w/f; httpd -f -p 80 -h /w")  # fmt: skip
    script = "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://source/f && exit; sleep 0.2; done"
    assert (
        vmm.out("run", "--rm", "--name", "sink", "busybox", "sh", "-c", script) == "from the source"
    )


def test_a_failing_instruction_stops_the_build(vmm: Instance, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo seen; exit 3\nRUN touch /never\n")
    done = vmm.run("build", "-t", "half", str(tmp_path), check=False)
    assert done.returncode == 3  # the command's own, as docker build
    assert "seen" in done.stdout and "Step 3/3" not in done.stdout
    assert "returned a non-zero code: 3" in done.stderr and "line 2" in done.stderr
    assert vmm.out("images", "-q", "half") == ""


def test_an_unknown_base_says_how_to_get_it(vmm: Instance, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:bookworm\n")
    done = vmm.run("build", str(tmp_path), check=False)
    assert done.returncode == 1 and "vmm image bootstrap debian:bookworm" in done.stderr


@pytest.mark.parametrize("image", ["busybox-glibc", "busybox-musl"])
def test_published_images_run(vmm: Instance, shared: Path, image: str) -> None:
    vmm.run("image", "import", str(shared / "images" / image), f"{image}:t")
    assert vmm.out("run", "--rm", "--network=none", f"{image}:t", "echo", "ran") == "ran"
    vmm.run("rmi", f"{image}:t")


def test_a_published_root_file_system_runs(vmm: Instance, shared: Path) -> None:
    vmm.run("image", "import", str(shared / "images/alpine-3.20.tar.gz"), "alpine:3.20")
    out = vmm.out("run", "--rm", "--network=none", "alpine:3.20", "cat", "/etc/alpine-release")
    assert out.startswith("3.20")
    assert "busybox" in vmm.out("run", "--rm", "--network=none", "alpine:3.20", "apk", "info")
    vmm.run("rmi", "alpine:3.20")


def test_from_scratch(vmm: Instance, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes((shared / "images/hello-world/hello").read_bytes())
    (tmp_path / "hello").chmod(0o755)
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY hello /\nCMD ["/hello"]\n')
    vmm.run("build", "-t", "hello", str(tmp_path))
    assert "Hello from Docker!" in vmm.out("run", "--rm", "hello")
