"""Measures a report of 8 images with a slow store, and the memory that 20 images of 8 MB take.

    python bench/uploads.py

Runs the real server with our Cloudinary double, which takes 200 ms for an upload. Prints both figures. Exit code 1 if a
report of 8 images takes as long as 3 uploads, or if memory grows by 60 MB.
"""

import io
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import urllib3
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from testing.cloudinary_double import CloudinaryDouble  # noqa: E402

UPLOAD = 0.2  # seconds
PASSWORD = "correct horse battery"


def photograph(megabytes: float) -> bytes:
    """A JPEG of about this size: noise does not compress."""
    side = int((megabytes * 1024 * 1024 / 1.17) ** 0.5)
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), secrets.token_bytes(side * side * 3)).save(file, "JPEG", quality=95)
    return file.getvalue()


def peak_memory(pid: int) -> float:
    """Return the peak resident memory, in MB, of the largest among the process and its workers."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    status = "".join(Path(f"/proc/{each}/status").read_text() for each in pids)
    return max(map(int, re.findall(r"VmHWM:\s+(\d+)", status))) / 1024


def main() -> int:
    with CloudinaryDouble() as cloud, tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = {
            **os.environ,
            "FLASK_ENV": "development",
            "FLASK_APP": "app.py",
            "INSTANCE_PATH": folder,
            "DATABASE_URL": f"sqlite:///{folder}/hosi.db",
            "PORT": str(port),
            "WEB_CONCURRENCY": "1",
            "CLOUDINARY_CLOUD_NAME": cloud.cloud_name,
            "CLOUDINARY_API_KEY": cloud.api_key,
            "CLOUDINARY_API_SECRET": cloud.api_secret,
            "CLOUDINARY_UPLOAD_PREFIX": cloud.url,
            "LOG_LEVEL": "WARNING",
        }
        tool = Path(sys.executable).parent
        subprocess.run([tool / "flask", "db", "upgrade"], cwd=ROOT, env=environment, check=True, capture_output=True)
        server = subprocess.Popen([sys.executable, "serve.py"], cwd=ROOT, env=environment)
        try:
            return measure(f"http://127.0.0.1:{port}", server.pid, cloud)
        finally:
            server.terminate()
            server.wait(30)


def measure(server: str, pid: int, cloud: CloudinaryDouble) -> int:
    http = urllib3.PoolManager(retries=urllib3.Retry(20, backoff_factor=0.1, allowed_methods=None))
    person = {"first_name": "Ada", "last_name": "Otieno", "email": "ada@clinic.test", "password": PASSWORD}
    http.request("POST", f"{server}/signup", json=person | {"role": "admin"})
    login = {"email": "ada@clinic.test", "password": PASSWORD}
    token = http.request("POST", f"{server}/login", json=login).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    patient = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
    http.request("POST", f"{server}/patients", json=patient, headers=headers)

    def file_report(images: list[bytes]) -> float:
        fields = [("patient_id", "1"), *(("images", (f"{n}.jpg", image)) for n, image in enumerate(images))]
        began = time.perf_counter()
        answer = http.request("POST", f"{server}/reports", fields=fields, headers=headers, retries=False, timeout=300)
        assert answer.status == 201, answer.data
        return time.perf_counter() - began

    small, large = photograph(0.2), photograph(8)
    file_report([small])
    cloud.delay = UPLOAD
    times = [file_report([small] * 8) for _ in range(5)]
    ratio = statistics.median(times) / UPLOAD
    before = peak_memory(pid)
    file_report([large] * 20)
    growth = peak_memory(pid) - before
    print(f"a report of 8 images, at {UPLOAD * 1000:.0f} ms an upload: {ratio:.2f} x one upload (at most 3)")
    print(f"20 images of {len(large) / 2**20:.1f} MB: peak memory grew by {growth:.0f} MB (at most 60)")
    return int(ratio >= 3 or growth >= 60)


if __name__ == "__main__":
    sys.exit(main())
