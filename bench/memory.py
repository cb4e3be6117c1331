"""Prints by how many MB the peak memory of this process grows while it streams a collection. `make bench` runs it."""

import json
import os
import re
import sys
from pathlib import Path

from app import create_app
from bench.__main__ import ZONE, Asker


def memory(of: str) -> float:
    return int(re.findall(rf"{of}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


url, folder, token = sys.argv[1:]
app = create_app(
    {
        "FLASK_ENV": "testing",
        "DATABASE_URL": url,
        "INSTANCE_PATH": folder,
        "TIMEZONE": ZONE,
        "RATELIMIT_ENABLED": False,
        **json.loads(os.environ["BENCH_KEYS"]),
    }
)
asker = Asker(app, token)
asker.get("/patient/1")
idle = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
for _piece in app.wsgi_app(asker.environ("/patients")(), lambda *_: None):
    pass
print(memory("VmHWM") - idle)
