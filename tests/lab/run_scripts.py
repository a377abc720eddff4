"""Inside the guest: run each script of scripts.json, and write results.json on the host."""

import json
import os
import subprocess
import time

SHARED = os.environ["SHARED"]
#: Seconds for one script.
PATIENCE = float(os.environ.get("PATIENCE", "30"))


def run(script: str) -> tuple[int, str, str, float]:
    """Exit code (124: took too long), standard output, standard error, seconds."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            ["sh", "-c", script],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code, out, err = 124, error.stdout or b"", error.stderr or b""
    seconds = round(time.monotonic() - begin, 3)
    return code, out.decode(errors="replace"), err.decode(errors="replace"), seconds


with open(f"{SHARED}/scripts.json", encoding="utf-8") as file:
    scripts = json.load(file)
results = {}
for name, script in scripts.items():
    results[name] = run(script)
    with open(f"{SHARED}/results.new", "w", encoding="utf-8") as file:
        json.dump(results, file)
    os.replace(f"{SHARED}/results.new", f"{SHARED}/results.json")
