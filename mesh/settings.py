"""Settings: the groups every process shares, and the one loader: flag > ``MESH_GROUP__NAME`` > TOML file > default.

A name that no group has is an error wherever it stands, in the file or in the environment; variables without ``__`` are
not judged (Kubernetes injects such). Read once, by the command; a component receives only its own group, and no other
module reads the environment. Not here: groups that only the agent or only the router has (``edge.settings``,
``cloud.settings``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from mesh.addresses import advertised, parse
from mesh.errors import ConfigError
from mesh.values import NAME_PATTERN, Tier

PREFIX = "MESH_"
_CREDENTIALS = re.compile(r"//[^/@]*@")
Name = Field(default="", pattern=f"^$|{NAME_PATTERN.pattern}")


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SiteSettings(Group):
    """Which mesh and site this process belongs to, and the secret that proves it on the LAN."""

    mesh: str = Field(default="default", pattern=NAME_PATTERN.pattern)
    """Only nodes of the same mesh id ever exchange tensors."""
    region: str = Name
    """Region of the site, for models and requests that must not leave it; empty is none."""
    name: str = Name
    """Site; empty is ``default`` for an edge node and ``cloud`` for a cloud node. Not ``v1``, which begins subjects."""
    key: SecretStr | None = Field(default=None, min_length=16)
    """Site key, at least 16 characters: without it neighbours on a LAN without NATS trade nothing."""
    key_file: Path | None = None
    """File that holds the site key instead."""

    def secret(self) -> bytes | None:
        if self.key is not None:
            return self.key.get_secret_value().encode()
        if self.key_file is None:
            return None
        try:
            text = self.key_file.read_text().strip()
        except OSError as error:
            raise ConfigError(f"site.key_file: cannot read {self.key_file}: {error.strerror}") from None
        if len(text) < 16:
            raise ConfigError(f"site.key_file: {self.key_file} holds {len(text)} characters, at least 16 are needed")
        return text.encode()


class NodeSettings(Group):
    """This process's own identity."""

    name: str = Name
    """Name in the mesh; empty takes one from the host name and the persisted id."""
    tier: Tier = "edge"
    state_dir: Path | None = None
    """Where identity and caches persist; default $STATE_DIRECTORY, else the user's XDG state directory."""


class HttpSettings(Group):
    """The HTTP door."""

    listen: str = "127.0.0.1:8000"
    """HOST:PORT to bind; port 0 takes a free one. 0.0.0.0 serves the LAN."""
    advertise: str = ""
    """HOST:PORT others shall use; empty is the bound address, ``none`` hides the door (reached over the bus only)."""
    server_name: str = "inference-mesh"
    """Name in the server metadata."""
    max_body_bytes: int = Field(default=64 << 20, ge=1024)
    repository: bool = False
    """Let callers load and unload models at a door that other hosts reach; on loopback they always may."""
    shared_memory: bool = False
    """Let callers on this host pass tensors in system shared memory (Triton's ``system_shared_memory``)."""
    grace_s: float = Field(default=10.0, ge=0)
    """Longest that a drain may take on SIGTERM."""


class GrpcSettings(Group):
    """The gRPC door."""

    listen: str = ""
    """HOST:PORT to bind; port 0 takes a free one, empty opens no gRPC door."""
    max_message_bytes: int = Field(default=64 << 20, ge=1024)


class SequencesSettings(Group):
    """Stateful sequences, at the door they came to and at the node that holds them."""

    idle_s: float = Field(default=60.0, gt=0)
    """A sequence of which nothing was heard for so long is over; ``[sequence] idle_s`` of a model counts instead."""
    most: int = Field(default=4096, ge=1)
    """Sequences held at once; a new one beyond is refused."""
    max_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Of states, answers and inputs kept for them; a new one beyond is refused."""
    checkpoint_steps: int = Field(default=10, ge=1)
    """Steps between checkpoints: so many inputs are replayed at most when the node that holds a sequence dies."""


class MqttSettings(Group):
    """Requests that come as MQTT messages through the bus's own listener."""

    enabled: bool = True
    """Answer ``mesh/<site>/infer/<model>`` of this agent's site."""
    max_json_bytes: int = Field(default=16 << 20, ge=1024)


class NatsSettings(Group):
    """The bus; no URL means none is configured (an agent then looks for one through its neighbours)."""

    url: str = ""
    """nats://HOST:PORT[,nats://...]; credentials belong into the fields below."""
    user: str = ""
    password: SecretStr | None = None
    token: SecretStr | None = None
    creds_file: Path | None = None
    repository: bool = False
    """Let whoever the bus lets publish on this node's ``.control`` load and unload models, without the site key."""

    def urls(self) -> tuple[str, ...]:
        return tuple(u.strip() for u in self.url.split(",") if u.strip())


class RouterSettings(Group):
    """How requests find their node."""

    deadline_ms: float = Field(default=10_000.0, gt=0)
    """Deadline of a request that names none, for a model whose ``model.toml`` names none."""
    max_hops: int = Field(default=2, ge=0, le=2)
    policy: Literal["ours", "peak-ewma", "prequal-net", "local-only"] = "ours"
    """Rule by which a node is chosen; all but ``ours`` are there to be compared with (docs/benchmarks)."""
    near_budget: float = Field(default=0.05, ge=0, le=1)
    """The dial from fastest to cheapest: share of a request's time by which a cheaper tier (this node, its site, the
    cloud) may be slower than the best and is still taken."""
    retry_ratio: float = Field(default=0.10, ge=0, le=1)
    """Largest share of requests that may be retried; refusals are free (DESIGN D16). 0 retries nothing else."""


class DiscoverySettings(Group):
    """How neighbours are found."""

    enabled: bool = True
    """Announce and browse by zeroconf."""
    seeds: tuple[str, ...] = ()
    """HOST:PORT doors of neighbours to try without zeroconf."""


class LogSettings(Group):
    level: Literal["debug", "info", "warning", "error"] = "info"
    json_lines: bool = False
    """One JSON object a line, for log collectors."""


class MeshSettings(BaseSettings):
    """What the agent and the cloud router share; each adds its own groups."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__")

    site: SiteSettings = SiteSettings()
    node: NodeSettings = NodeSettings()
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    sequences: SequencesSettings = SequencesSettings()
    mqtt: MqttSettings = MqttSettings()
    nats: NatsSettings = NatsSettings()
    router: RouterSettings = RouterSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    log: LogSettings = LogSettings()


S = TypeVar("S", bound=MeshSettings)


class Loaded(msgspec.Struct):
    """Effective settings and, for each ``group.name`` that is not a default, where it came from."""

    settings: Any
    sources: dict[str, str]


def load(cls: type[S], flags: Mapping[str, Any], config: Path | None, environ: Mapping[str, str]) -> tuple[S, Loaded]:
    """Merge the sources and validate. ``flags`` maps ``group.name`` to a value, None where not given.

    Raises :class:`ConfigError` naming the setting and its source.
    """
    values: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    given = {name: value for name, value in flags.items() if value is not None}
    flat = [("file", _file(cls, config)), ("environment", _environment(cls, environ)), ("flag", _nest(given))]
    for source, groups in flat:
        for group, members in groups.items():
            if not isinstance(members, dict):
                raise ConfigError(f"{group}: settings live in groups, as in [{group}] name = value ({source})")
            for name, value in members.items():
                values.setdefault(group, {})[name] = value
                sources[f"{group}.{name}"] = source
    try:
        settings = cls.model_validate(values)  # not the constructor: it would read the environment by itself
    except ValidationError as error:
        raise ConfigError(_explain(error, sources)) from None
    _check_addresses(settings)
    return settings, Loaded(settings, sources)


def _check_addresses(settings: MeshSettings) -> None:
    if settings.site.name == "v1":
        raise ConfigError("site.name: mesh.v1 begins the subjects of the mesh, choose another name")
    name = "http.listen"
    try:
        parse(settings.http.listen)
        if settings.grpc.listen:
            name = "grpc.listen"
            parse(settings.grpc.listen)
        name = "discovery.seeds"
        for seed in settings.discovery.seeds:
            parse(seed)
        name = "http.advertise"
        advertised("127.0.0.1:1", settings.http.advertise)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.text}") from None


def _file(cls: type[MeshSettings], path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not path.is_file():
        raise ConfigError(f"--config: there is no file {path}")
    try:
        return dict(TomlConfigSettingsSource(cls, path)())
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}") from None


def _environment(cls: type[MeshSettings], environ: Mapping[str, str]) -> dict[str, Any]:
    judged = {name: value for name, value in environ.items() if name.startswith(PREFIX) and "__" in name}
    for name, value in judged.items():
        group, _, member = name.removeprefix(PREFIX).lower().partition("__")
        field = cls.model_fields.get(group)
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, Group) and member in kind.model_fields):
            raise ConfigError(f"{name}: no setting has this name; 'config check' lists those there are")
        if get_origin(kind.model_fields[member].annotation) is tuple and not value.lstrip().startswith("["):
            raise ConfigError(f'{name}: a list is given as JSON, as in ["one","two"]')
    source = EnvSettingsSource(cls, env_prefix=PREFIX, env_nested_delimiter="__")
    source.env_vars = {k.lower(): v for k, v in judged.items()}
    try:
        return dict(source())
    except ValueError as error:
        raise ConfigError(f"environment: {error}") from None


def _nest(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for dotted, value in flags.items():
        group, _, name = dotted.partition(".")
        groups.setdefault(group, {})[name] = value
    return groups


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        group, *rest = (str(part) for part in item["loc"])
        setting = ".".join([group, *rest[:1]])
        source = next(
            (s for name, s in sources.items() if name == setting or name.startswith(f"{setting}.")), "defaults"
        )
        what = "no setting has this name" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"{'.'.join([group, *rest])}: {what} (from {source})")
    return "; ".join(lines)


def effective(loaded: Loaded) -> list[dict[str, Any]]:
    """Every setting with its value and source, secrets masked: what ``config check`` prints."""
    dumped = loaded.settings.model_dump(mode="json")
    dumped["nats"]["url"] = _CREDENTIALS.sub("//**********@", dumped["nats"]["url"])
    return [
        {"name": f"{group}.{name}", "value": value, "source": loaded.sources.get(f"{group}.{name}", "default")}
        for group, members in dumped.items()
        for name, value in members.items()
    ]


def process_environ() -> Mapping[str, str]:
    """The environment, read here and nowhere else."""
    return os.environ
