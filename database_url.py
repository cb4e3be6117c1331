"""Reads DATABASE_URL, and says how to connect to the database.

libpq and SQLAlchemy write several hosts in two ways. A server that vanished is given up after some seconds.
"""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

# Seconds until we give up a PostgreSQL host that vanished without a reset. A request waits at most this long for a
# place in the pool, then at most this long for its connection. The number of hosts does not change that.
GIVE_UP = 10
LIMITS = {
    "tcp_user_timeout": GIVE_UP * 1000,  # milliseconds
    "keepalives_idle": 5,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 2,
}

STANDBY_LIMITS = {"connect_timeout": 2, "tcp_user_timeout": 2000}  # seconds, milliseconds

POOL = 40  # connections of a worker to PostgreSQL: 14 requests inside the gate, two for each, and the streams


def engine_options(url: str, threads: int) -> dict[str, Any]:
    """Return the arguments of `create_engine`.

    The gate bounds the requests that use PostgreSQL at once. On SQLite a connection is a file handle, and a thread that
    waits for its turn to write holds one.
    """
    options: dict[str, Any] = {"hide_parameters": True}  # the log shows no value of a patient
    if url in ("sqlite://", "sqlite:///:memory:"):
        return options
    options |= {"pool_size": threads, "max_overflow": threads, "pool_timeout": GIVE_UP, "pool_recycle": 1800}
    if url.startswith("postgresql"):
        options |= {"pool_size": POOL // 2, "max_overflow": POOL // 2}
        options["connect_args"] = _connection_limits(make_url(url))
        # whatever the server's default: under REPEATABLE READ a transaction would not see what it waited for
        options["isolation_level"] = "READ COMMITTED"
    return options


def standby_options(url: str) -> dict[str, Any]:
    """Return the arguments of `create_engine` for a standby. It is given up sooner: the primary can do the same."""
    options = engine_options(url, POOL)
    options["connect_args"] |= {
        name: limit for name, limit in STANDBY_LIMITS.items() if name not in make_url(url).query
    }
    return options


def _connection_limits(url: URL) -> dict[str, int]:
    """Return the libpq parameters that limit the wait for a vanished server. Parameters in the URL win.

    `tcp_user_timeout` limits how long sent data stays unacknowledged; keepalives do not help there. Keepalives limit
    the wait for an answer after the server acknowledged the query. libpq ignores `tcp_user_timeout` outside of Linux.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
    """
    hosts = _as_list(url.query.get("host", ""))
    connect_timeout = max(2, min(5, GIVE_UP // len(hosts)))  # seconds for each host, at least 2
    limits = {"connect_timeout": connect_timeout, **LIMITS}
    return {name: limit for name, limit in limits.items() if name not in url.query}


def _as_list(values: str | Sequence[str]) -> list[str]:
    """Return the hosts or ports of a URL's query, written as `a,b` or as a repeated parameter."""
    return values.split(",") if isinstance(values, str) else list(values)


_LIBPQ_URL = re.compile(r"(?P<account>[^/?@]*@)?(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?", re.DOTALL)
_HOST = re.compile(r"(?:\[([^]]+)\]|([^:\[\]]*))(?::([0-9]*))?")  # an IPv6 address in brackets, or a name; a port


def postgresql_url(rest: str) -> str:
    """Return the SQLAlchemy URL for a libpq URL. `rest` is the part after `postgresql://`.

    libpq takes several hosts, `a:5432,b:5432`, and the folder of a socket as `%2Frun%2Fpostgresql`. SQLAlchemy reads
    both only in the query, `?host=a,b&port=5432,5432`. In libpq a single port belongs to every host.
    Raises ValueError if the URL cannot be read; the message never repeats the URL, which may hold a password.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
    """
    try:
        text = f"postgresql+psycopg2://{_with_hosts_in_query(rest)}"
        url = make_url(text)
        hosts, ports = (_as_list(url.query.get(name, "")) for name in ("host", "port"))
        if len(hosts) > len(ports) == 1 and ports[0]:
            url = url.update_query_dict({"port": ",".join(ports * len(hosts))})
            text = url.render_as_string(hide_password=False)
        _check_parameters(url)
    except (ValueError, SQLAlchemyError, ProgrammingError):
        raise ValueError(
            "cannot be read; check hosts, ports and parameters; percent-encode @ : / ? and % in the password"
        ) from None
    return text


def _with_hosts_in_query(rest: str) -> str:
    """Move the hosts of `rest` into its query if SQLAlchemy cannot read them where they are. Raises ValueError."""
    found = _LIBPQ_URL.fullmatch(rest)
    if not found or not re.search("[,%]", found["hosts"]):
        return rest
    hosts = [_HOST.fullmatch(host) for host in found["hosts"].split(",")]
    if not all(hosts):
        raise ValueError("a host or port is not valid")
    query = {"host": ",".join(unquote(host[1] or host[2]) for host in hosts if host)}
    query["port"] = ",".join(host[3] or "" for host in hosts if host)
    given = found["query"] or ""
    moved = {name: value for name, value in query.items() if value.strip(",") and name not in parse_qs(given)}
    return f"{found['account'] or ''}{found['path'] or '/'}?{'&'.join(filter(None, [urlencode(moved), given]))}"


def _check_parameters(url: URL) -> None:
    """Raise ValueError, SQLAlchemyError or ProgrammingError for a parameter or port that libpq does not take."""
    _, parameters = url.get_dialect()().create_connect_args(url)
    make_dsn(**parameters)
    if any(int(port or 5432) not in range(1, 65536) for port in str(parameters.get("port", "")).split(",")):
        raise ValueError("no such port")
