# The scripts of an emulated machine, with the host's programs; then it powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export SHARED=/run/shared SCRATCH=/run/scratch TMPDIR=/run/scratch
. /run/shared/environment
mkdir "$SCRATCH"
ip link set lo up
"$PYTHON" "$LAB/run_scripts.py"
sync
busybox poweroff -f
