"""Serves the floor of bench/floor.py by the server of `make run`, with a connection for each thread.

HOSI_FLOOR=URL PORT=… JWT_SECRET_KEY=… SECRET_KEY=… python bench/floor_server.py
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import serve  # noqa: E402


def load(_target: str) -> Callable[..., Any]:
    from bench.floor import create_floor
    from server.edge import Edge

    mine = threading.local()
    setting, url = os.environ, os.environ["DATABASE_URL"]

    def floor(environ: Any, start_response: Any) -> Any:
        if not hasattr(mine, "app"):
            keys = setting["JWT_SECRET_KEY"], setting["SECRET_KEY"], setting["TIMEZONE"]
            mine.app = create_floor(url, *keys, 3600)
        return mine.app(environ, start_response)

    return Edge(floor, int(setting.get("WEB_THREADS", "64")), serve.PLACES[url.partition(":")[0]], lambda _: True)


if __name__ == "__main__":
    serve.main(load)
