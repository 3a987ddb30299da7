"""The server: serve."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from raytrain.cli.app import command, say, write
from raytrain.errors import BadInput, require
from raytrain.storage.escapes import printable

if TYPE_CHECKING:
    from raytrain.server.settings import ServerSettings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHORTEST_TOKEN = 16
_MODULES = (
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "jinja2",
    "plotly",
    "platformdirs",
    "prometheus_client",
    "fastapi_offline",
)
Database = Annotated[
    str | None,
    Option(
        "--database",
        metavar="URL",
        help="By default history.db in the data directory; or "
        "postgresql+psycopg://USER@HOST/DATABASE.",
    ),
]


@command
def serve(
    storages: Annotated[
        list[str] | None,
        Argument(
            metavar="[STORAGE]...",
            help="Directories or URIs with the runs' directories; by default results.",
        ),
    ] = None,
    *,
    port: Annotated[
        int, Option("--port", metavar="N", min=0, max=65535, help="0: any that is free.")
    ] = 8200,
    host: Annotated[
        str, Option("--host", metavar="HOST", help="The address to listen at.")
    ] = "127.0.0.1",
    names: Annotated[
        list[str] | None,
        Option(
            "--name",
            metavar="NAME",
            help="Another name of this server, such as that of the proxy before it; can be given "
            "several times.",
        ),
    ] = None,
    allow_remote: Annotated[
        bool, Option("--allow-remote", help="Listen at an address that other machines reach.")
    ] = False,
    config_dirs: Annotated[
        list[Path] | None,
        Option(
            "--config-dir",
            metavar="DIR",
            help="Where configs may lie; can be given several times. By default configs, if it "
            "is there, and configs in the data directory. New ones are written into the first.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        Option(
            "--data-dir",
            metavar="DIR",
            help="For logs of runs, exports and the database; by default the user's.",
        ),
    ] = None,
    database: Database = None,
    address: Annotated[
        str | None,
        Option(
            "--address",
            metavar="ADDRESS",
            help="A Ray cluster's dashboard, such as http://HOST:8265: runs may be submitted "
            "there, and its nodes are shown.",
        ),
    ] = None,
    read_only: Annotated[
        bool, Option("--read-only", help="Show only: start, stop and change nothing.")
    ] = False,
) -> None:
    """Show, start and stop runs in a browser and over HTTP.

    \b
      raytrain serve
      raytrain serve results s3://bucket/runs --port 8300

    It prints an address with a token: open it once in a browser. Programs use raytrain.Client.
    RAYTRAIN_SERVER_TOKEN may hold a token of your own. Runs are processes of their own, so they go
    on when the server ends. Needs the extra serve. See docs/guide/server.md.
    """
    require("serve", *_MODULES, what="raytrain serve")
    _require_own_machine(host, allow_remote=allow_remote)
    from raytrain.server.settings import ServerSettings

    data = data_directory(data_dir)
    settings = ServerSettings(
        storages=_storages(storages),
        config_dirs=_config_dirs(config_dirs, data),
        data_dir=data,
        token=_token(),
        database=database_url(database, data),
        host=host,
        port=port,
        names=tuple(names or ()),
        allow_remote=allow_remote,
        address=None if address is None else _cluster(address),
        read_only=read_only,
    )
    _run(settings)


def _run(settings: ServerSettings) -> None:
    from dataclasses import replace

    from raytrain.server.listening import listen, serve_until_signal

    listening = listen(settings.host, settings.port)
    try:
        settings = replace(settings, port=listening.getsockname()[1])
        _log_to_stderr()
        from raytrain.server.app import create_app

        app = create_app(settings)
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        shown = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)
        say(f"Serving {', '.join(settings.storages)}. Ctrl-C ends the server; runs go on.")
        write(f"http://{shown}:{settings.port}/?token={settings.token}\n")
        serve_until_signal(app, listening)
    finally:
        listening.close()


def _require_own_machine(host: str, *, allow_remote: bool) -> None:
    if host in _LOOPBACK or allow_remote:
        return
    raise BadInput(
        f"--host {host}: other machines could reach the server, and who has its token can run code "
        "as you; HTTP sends the token unencrypted. Reach this machine through SSH instead (ssh -L "
        "8200:127.0.0.1:8200 HOST), or put a proxy with TLS before the server and give its name "
        "with --name. To listen there all the same, give --allow-remote."
    )


def _storages(given: list[str] | None) -> tuple[str, ...]:
    from raytrain.storage import Location
    from raytrain.storage.location import storage_errors

    if not given:
        return (str(Location.of("results")),)
    places = [Location.of(each) for each in given]
    for place in places:
        with storage_errors("Looking at the storage", place):
            if place.is_local and not place.is_dir():
                raise BadInput(
                    f"There is no directory {place}. Give the `storage_path` of your runs: the "
                    "directory that contains the experiments' directories; or make it first."
                )
            place.subdirectories()
    return tuple(dict.fromkeys(map(str, places)))


def data_directory(given: Path | None) -> Path:
    """The directory for what a server keeps; by default the user's. Raises `BadInput`."""
    import platformdirs

    data = given or Path(platformdirs.user_data_dir("raytrain", appauthor=False))
    data = data.expanduser().absolute()
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BadInput(
            f"--data-dir {data}: it cannot be made: {error.strerror}. Give another directory."
        ) from None
    return data


def database_url(given: str | None, data: Path) -> str:
    """The URL of the history's database; by default a file in the data directory."""
    return given or f"sqlite:///{data / 'history.db'}"


def _config_dirs(given: list[Path] | None, data: Path) -> tuple[Path, ...]:
    missing = next((path for path in given or () if not path.is_dir()), None)
    if missing is not None:
        raise BadInput(f"--config-dir {missing}: there is no such directory.")
    if given:
        return tuple(path.absolute() for path in given)
    here = Path("configs").absolute()
    return (*([here] if here.is_dir() else []), data / "configs")


def _token() -> str:
    from raytrain.server.settings import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return secrets.token_urlsafe(32)
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise BadInput(
            f"{TOKEN_VARIABLE} must have {_SHORTEST_TOKEN} characters or more, all of them ASCII. "
            "Make one with: openssl rand -hex 32"
        )
    return token


def _cluster(address: str) -> str:
    from raytrain.commands.jobs import full_address

    return full_address(address)


def _log_to_stderr() -> None:
    class ToStderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(printable(self.format(record), lines=True))

    for name, level in (("raytrain.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(ToStderr())
        logger.setLevel(level)
        logger.propagate = False
