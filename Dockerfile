# The server as an image: not root, and it writes to instance/ and /tmp alone. docs/operations.md, Containers.

FROM python:3.13-slim AS packages
WORKDIR /srv/hosi
COPY requirements.txt ./
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements.txt

FROM python:3.13-slim
WORKDIR /srv/hosi
RUN useradd --system --uid 10001 --home-dir /srv/hosi --no-create-home hosi \
    && install --directory --owner hosi --mode 0700 instance
COPY --from=packages /srv/hosi/.venv .venv
COPY .flaskenv *.py ./
COPY clinic clinic
COPY server server
COPY migrations migrations
COPY static static
ENV PATH="/srv/hosi/.venv/bin:$PATH" PYTHONUNBUFFERED=1 HOST=0.0.0.0 HEALTH_PORT=5001
RUN python -m compileall -q .
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001
VOLUME /srv/hosi/instance
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as ask; ask.urlopen('http://127.0.0.1:5001/healthz', timeout=2)"]
CMD ["python", "serve.py"]
