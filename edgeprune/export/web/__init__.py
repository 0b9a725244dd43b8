"""A folder that runs the dense and the slim network in a browser: on a phone, say, for which they are meant."""

from edgeprune.export.web.runtime import RUNTIME_VERSION, WebRuntime, web_runtime
from edgeprune.export.web.writer import WebNetwork, WebProbe, WebTask, check_web, write_web

__all__ = [
    "RUNTIME_VERSION", "WebNetwork", "WebProbe", "WebRuntime", "WebTask", "check_web", "web_runtime", "write_web",
]  # fmt: skip
