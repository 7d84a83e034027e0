"""A KMS client of botocore that nothing around it configures.

botocore takes endpoints, proxies, roots, credentials, models and even code to import from the
environment and from ``~/.aws``. Inside the enclave only the measured configuration decides (SPEC
3.2, 10.1), so every such source is replaced by a constant.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from botocore import plugin
from botocore.config import Config
from botocore.configprovider import ConfigValueStore, ConstantProvider
from botocore.loaders import Loader
from botocore.session import Session

from casemate import limits

if TYPE_CHECKING:
    from casemate_kms.credentials import Credentials
    from casemate_kms.transport import RegionTransport

# What botocore insists on; everything else it asks for is None.
_SETTINGS: Final[dict[str, Any]] = {
    "api_versions": {},
    "defaults_mode": "legacy",
    "parameter_validation": True,
}
_CONFIG: Final = Config(
    connect_timeout=limits.KMS_TIMEOUT_S,
    read_timeout=limits.KMS_TIMEOUT_S,
    max_pool_connections=1,  # never used: the transport sends
    proxies={},
    retries={"mode": "standard", "total_max_attempts": 1},  # a retry needs a fresh document
    ignore_configured_endpoint_urls=True,
    use_fips_endpoint=False,
    use_dualstack_endpoint=False,
    disable_request_compression=True,
    request_min_compression_size_bytes=10_240,  # must be a number, even so
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    account_id_endpoint_mode="disabled",
    user_agent="casemate-kms",
)


class _NoTokens:
    """Stands in for the provider that would look for tokens in the environment and in caches."""

    def load_token(self, **_kwargs: object) -> None:
        return None


def kms_client(region: str, credentials: Credentials, transport: RegionTransport) -> Any:  # noqa: ANN401 - botocore makes classes at run time
    """Return a botocore client for one region, whose every request goes through ``transport``."""
    silence()
    session = Session(include_builtin_handlers=False)
    settings = {name: ConstantProvider(value) for name, value in _SETTINGS.items()}
    session.register_component("config_store", ConfigValueStore(settings))
    session.register_component("token_provider", _NoTokens())
    session.register_component("data_loader", _loader())
    context = plugin.set_plugin_context(plugin.PluginContext(plugins="DISABLED"))
    try:
        client = session.create_client(
            "kms",
            region_name=region,
            endpoint_url=transport.endpoint_url,
            verify=True,
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
            config=_CONFIG,
        )
    finally:
        plugin.reset_plugin_context(context)
    client.meta.events.register("before-send.kms", transport.send)
    return client


def _loader() -> Loader:
    """Load models from botocore's own folder only: ``~/.aws/models`` would come first."""
    return Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)


def silence() -> None:
    """Make botocore mute for good: at DEBUG it logs requests with their documents and tokens."""
    logger = logging.getLogger("botocore")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
    logger.disabled = True
    for name, child in logging.root.manager.loggerDict.items():
        if name.startswith("botocore.") and isinstance(child, logging.Logger):
            child.disabled = True
