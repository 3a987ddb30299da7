"""What a server was started with. Nothing of it changes while it runs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from raytrain.storage import Location

TOKEN_VARIABLE = "RAYTRAIN_SERVER_TOKEN"


def child_environment() -> dict[str, str]:
    """The environment of the processes that a server starts: its own, without the token."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}


@dataclass(frozen=True)
class Limits:
    """Bounds on what one server does at once. `start_wait_s` and `stop_wait_s`: how long a request
    waits for a run that starts or stops; the run goes on in any case."""

    body_bytes: int = 1 << 20
    streams: int = 400
    tasks: int = 2
    waiting_tasks: int = 20
    start_wait_s: float = 180.0
    stop_wait_s: float = 330.0


@dataclass(frozen=True)
class ServerSettings:
    """`storages`: the directories or URIs whose experiments are shown and started; the first is for
    configs that name none. `config_dirs`: where configs may lie; new ones are written into the
    first. `data_dir`: logs of runs, exports, the database. `names`: other names of this server that
    a `Host` header may have. `database`: a URL. `address`: of a Ray cluster's dashboard.
    """

    storages: tuple[str, ...]
    config_dirs: tuple[Path, ...]
    data_dir: Path
    token: str
    database: str
    host: str = "127.0.0.1"
    port: int = 8200
    names: tuple[str, ...] = ()
    allow_remote: bool = False
    address: str | None = None
    read_only: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def cookie(self) -> str:
        """The name of the cookie: browsers share cookies between the ports of a host."""
        return f"raytrain_token_{self.port}"

    @property
    def exports(self) -> Path:
        return self.data_dir / "exports"

    def launch_directory(self, place: Location) -> Path:
        """Where the starts of the run in a directory are recorded, with their logs."""
        digest = hashlib.sha256(str(place).encode(errors="surrogatepass")).hexdigest()
        return self.data_dir / "logs" / digest[:16]
