"""Settings from flags, environment, file and defaults: which wins, where it came from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloud.settings import CloudSettings
from edge.settings import EdgeSettings
from mesh.errors import ConfigError
from mesh.settings import Loaded, MeshSettings, effective, load


def loaded(
    cls: type[MeshSettings] = MeshSettings,
    *,
    flags: Mapping[str, Any] | None = None,
    toml: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    return load(cls, flags or {}, toml, environ or {})[1]


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*args, **kwargs)
    assert "\n" not in caught.value.text
    return caught.value.text


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "mesh.toml"
        path.write_text(text)
        return path

    return write


def test_flag_beats_environment_beats_file_beats_default(toml: Any) -> None:
    file = toml('[site]\nname = "file"\nmesh = "file"\n[http]\nlisten = "0.0.0.0:1"\n[router]\nmax_hops = 1\n')
    environ = {"MESH_SITE__NAME": "env", "MESH_HTTP__LISTEN": "0.0.0.0:2", "MESH_LOG__LEVEL": "debug"}
    found = loaded(toml=file, environ=environ, flags={"site.name": "flag", "node.name": None})
    settings = found.settings
    assert (settings.site.name, settings.http.listen, settings.site.mesh) == ("flag", "0.0.0.0:2", "file")
    assert (settings.router.max_hops, settings.log.level, settings.node.name) == (1, "debug", "")
    assert found.sources == {
        "site.name": "flag",
        "site.mesh": "file",
        "http.listen": "environment",
        "router.max_hops": "file",
        "log.level": "environment",
    }


def test_every_setting_is_listed_with_its_value_and_source(toml: Any) -> None:
    rows = {row["name"]: row for row in effective(loaded(EdgeSettings, toml=toml("[models]\nqueue_limit = 9\n")))}
    assert rows["models.queue_limit"] == {"name": "models.queue_limit", "value": 9, "source": "file"}
    assert rows["router.retry_ratio"] == {"name": "router.retry_ratio", "value": 0.1, "source": "default"}
    groups = EdgeSettings.model_fields
    expected = {f"{g}.{name}" for g, field in groups.items() for name in field.annotation.model_fields}  # type: ignore[union-attr]
    assert rows.keys() == expected


def test_secrets_are_masked_wherever_they_stand() -> None:
    environ = {
        "MESH_SITE__KEY": "hush-hush-hush-hush",
        "MESH_NATS__PASSWORD": "hush",
        "MESH_NATS__TOKEN": "hush",
        "MESH_NATS__URL": "nats://user:hush@one:4222,nats://hush@two:4222",
    }
    found = loaded(environ=environ)
    assert "hush" not in repr(effective(found)) + repr(found.settings.site) + repr(found.settings.nats.password)
    rows = {row["name"]: row["value"] for row in effective(found)}
    assert rows["nats.url"] == "nats://**********@one:4222,nats://**********@two:4222"
    assert found.settings.nats.urls() == ("nats://user:hush@one:4222", "nats://hush@two:4222")
    assert found.settings.site.secret() == b"hush-hush-hush-hush"


def test_a_list_comes_from_the_file_as_a_list_and_from_the_environment_as_json(toml: Any) -> None:
    file = toml('[discovery]\nseeds = ["a:1", "[::1]:2"]\n')
    assert loaded(toml=file).settings.discovery.seeds == ("a:1", "[::1]:2")
    environ = {"MESH_DISCOVERY__SEEDS": '["b:1"]'}
    assert loaded(toml=file, environ=environ).settings.discovery.seeds == ("b:1",)
    text = refused(environ={"MESH_DISCOVERY__SEEDS": "a:1,b:2"})
    assert text == 'MESH_DISCOVERY__SEEDS: a list is given as JSON, as in ["one","two"]'
    assert refused(environ={"MESH_DISCOVERY__SEEDS": '["a:1'}).startswith("environment: ")
    assert "from environment" in refused(environ={"MESH_DISCOVERY__SEEDS": "[1]"})


@pytest.mark.parametrize("toml_text", ['[node]\nname = "n"\n', ""])
@pytest.mark.parametrize("environ", [{}, {"MESH_NODE__NAME": "n"}])
@pytest.mark.parametrize("flags", [{}, {"node.name": "n"}])
def test_a_router_is_of_the_cloud_whatever_else_is_said_of_its_node(
    toml: Any, toml_text: str, environ: dict[str, str], flags: dict[str, str]
) -> None:
    assert loaded(CloudSettings, toml=toml(toml_text), environ=environ, flags=flags).settings.node.tier == "cloud"
    assert loaded(EdgeSettings, toml=toml(toml_text), environ=environ, flags=flags).settings.node.tier == "edge"


def test_variables_without_two_underscores_are_nobodys_business() -> None:
    injected = {
        "MESH_URL": "http://door:8000",
        "MESH_PORT": "tcp://10.0.0.1:80",
        "MESH_PORT_80_TCP_ADDR": "10.0.0.1",
        "MESH_LOG": "verbose",
        "MESH_SITE": "not JSON",
        "MESH_HTTP": "{}",
        "OTHER__SITE__NAME": "x",
    }
    assert loaded(environ=injected).sources == {}


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("MESH_SITE__NAM", MeshSettings),
        ("MESH_SIT__NAME", MeshSettings),
        ("MESH_SITE__NAME__MORE", MeshSettings),
        ("MESH___NAME", MeshSettings),
        ("MESH_MODELS__DIR", CloudSettings),
    ],
)
def test_a_variable_that_no_setting_has_is_an_error(name: str, cls: type[MeshSettings]) -> None:
    assert refused(cls, environ={name: "x"}).startswith(f"{name}: no setting has this name")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[site]\nnam = "x"', "site.nam: no setting has this name (from file)"),
        ('[sitee]\nname = "x"', "sitee: no setting has this name (from file)"),
        ('[models]\ndir = "x"', "models: no setting has this name (from file)"),
        ('site = "x"', "site: settings live in groups"),
        ("[site", "is not TOML"),
        ("[http]\nlisten = 8000", "http.listen: Input should be a valid string (from file)"),
        ("[router]\nmax_hops = 3", "router.max_hops: "),
        ('[http]\nlisten = "8000"', "http.listen: '8000' is not HOST:PORT"),
        ('[http]\nlisten = "host:99999"', "http.listen: "),
        ('[http]\nadvertise = "nonsense"', "http.advertise: "),
        ('[http]\nadvertise = "0.0.0.0:80"', "http.advertise: "),
        ('[discovery]\nseeds = ["host"]', "discovery.seeds: 'host' is not HOST:PORT"),
        ('[node]\nname = "a b"', "node.name: "),
        ('[node]\ntier = "moon"', "node.tier: Input should be 'edge' or 'cloud' (from file)"),
        ('[site]\nkey = "short"', "site.key: "),
        ('[log]\nlevel = "LOUD"', "log.level: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named(toml: Any, text: str, says: str) -> None:
    assert says in refused(toml=toml(text))


def test_wrong_values_name_their_source_and_never_the_secret() -> None:
    assert "(from environment)" in refused(environ={"MESH_HTTP__MAX_BODY_BYTES": "many"})
    assert "(from flag)" in refused(flags={"node.tier": "moon"})
    assert "tiny" not in refused(environ={"MESH_SITE__KEY": "tiny"})


def test_a_file_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refused(toml=tmp_path / "none.toml")
    assert "there is no file" in refused(toml=tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not TOML" in refused(toml=binary)


def test_the_site_key_may_be_in_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    settings = loaded(environ={"MESH_SITE__KEY_FILE": str(key)}).settings
    with pytest.raises(ConfigError, match=r"site\.key_file: cannot read"):
        settings.site.secret()
    key.write_text("short\n")
    with pytest.raises(ConfigError, match="holds 5 characters, at least 16"):
        settings.site.secret()
    key.write_text("sixteen characters and more\n")
    assert settings.site.secret() == b"sixteen characters and more"
    assert loaded().settings.site.secret() is None


def test_threads_are_the_cores_divided_by_the_concurrency() -> None:
    environ = {"MESH_MODELS__CONCURRENCY": "256"}
    assert loaded(EdgeSettings, environ=environ).settings.models.run_threads() == 1
    assert loaded(EdgeSettings, environ={"MESH_MODELS__THREADS": "3"}).settings.models.run_threads() == 3
