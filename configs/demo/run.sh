#!/usr/bin/env bash
# The main job, for a person to see: from a Dockerfile to a web server on a published port, as a
# container and then, from the same image, as a virtual machine; and nothing left afterwards.
# Its state is in an instance of its own, kept for the build cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
vmm_program=${1:-vmm}
root=${VMM_DEMO_ROOT:-/var/lib/vmm-demo}
export PYTHONUNBUFFERED=1

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ vmm %s\n' "$*"; "$vmm_program" --root "$root" "$@"; }
quiet() { "$vmm_program" --root "$root" "$@"; }

[ "$(id -u)" = 0 ] || { echo "the demo makes containers: run it as root (sudo make demo)" >&2; exit 1; }

port=8080
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
[ "$port" = 8080 ] || echo "port 8080 is taken, using $port"

work=$(mktemp -d)
started_libvirt=
finish() {
    quiet rm -f demo >/dev/null 2>&1 || true
    quiet system teardown >/dev/null 2>&1 || true
    [ -z "$started_libvirt" ] || quiet system libvirt stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT
mkdir "$work/html" "$work/log"
chmod 777 "$work/log"
chmod 755 "$work" "$work/html"
echo "<h1>Hello from vmm</h1>" >"$work/html/index.html"

say "a base image, from Debian's own archive"
if quiet images -q debian:bookworm | grep -q .; then
    echo "debian:bookworm is there already"
else
    show image bootstrap debian:bookworm
fi

say "build an image from configs/demo/Dockerfile"
cat "$here/Dockerfile"
show build -t demo "$here"
show images

# Run the image, detached, with a published port and two volumes, and fetch the page.
serve() { # flag…
    show run -d --rm --name demo "$@" -p "$port:80" \
        -v "$work/html:/var/www/html" -v "$work/log:/var/log/lighttpd" demo
    page=
    for _ in $(seq 300); do # the server takes a moment to listen
        page=$(fetch || true)
        [ -z "$page" ] || break
        sleep 0.1
    done
    echo "$page"
    grep -q "Hello from vmm" <<<"$page"
}

fetch() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$port"
        printf 'GET / HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
        cat <&3
    ) 2>/dev/null
}

gone() {
    if [ -z "$2" ]; then echo "no $1"; else echo "LEFT: $1: $2"; left=1; fi
}

stop_and_look() {
    local id short left=0
    id=$(quiet ps -q --no-trunc --filter name=demo)
    short=${id:0:12}
    show stop demo
    for _ in $(seq 50); do
        [ -z "$(grep -ls "$short" /proc/[0-9]*/cmdline 2>/dev/null)" ] && break
        sleep 0.1
    done
    gone "process" "$(grep -ls "$short" /proc/[0-9]*/cmdline 2>/dev/null || true)"
    gone "mount" "$(grep "$short" /proc/self/mountinfo || true)"
    gone "link" "$(ip -o link | grep "v$short" || true)"
    gone "rule" "$(nft list ruleset | grep -F "$short" || true)"
    gone "cgroup" "$(find /sys/fs/cgroup -type d -name "*$short*" 2>/dev/null || true)"
    gone "directory" "$(find "$root/workloads" /run/vmm -name "$short*" 2>/dev/null || true)"
    gone "domain" "$(find /etc/libvirt/qemu -name "*$short*" 2>/dev/null || true)"
    [ "$left" = 0 ]
}

say "run it, detached, with a published port and two volumes, and fetch the page"
serve

say "look at it"
show ps
show port demo
show logs demo
show exec demo cat /proc/mounts
show inspect --format '{{.State.Status}} {{.NetworkSettings.IPAddress}}' demo

say "stop it: nothing is left"
stop_and_look

if [ "$(uname -m)" != x86_64 ]; then
    say "no virtual machine: this version makes them on x86_64 hosts"
    exit 0
fi

say "the same image as a virtual machine: libvirt, and a kernel from Debian's archive"
if ! quiet system libvirt status >/dev/null 2>&1; then
    show system libvirt start
    started_libvirt=1
fi
quiet kernel ls -q | grep -q . || show kernel fetch

say "the same command, with a kernel of its own (emulated where the host has no KVM: then it takes a while)"
serve --backend vm

say "look at it"
show ps
show exec demo uname -r
echo "the host's kernel: $(uname -r)"
show stats --no-stream demo

say "stop it: nothing is left"
stop_and_look
say "done: make demo again takes every step from the cache"
