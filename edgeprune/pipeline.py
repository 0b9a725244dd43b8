"""The commands as library functions: what `edgeprune.NAME` and the command line call."""

from edgeprune.commands.compress import compress
from edgeprune.commands.export import export
from edgeprune.commands.inspect import inspect
from edgeprune.commands.profile import profile
from edgeprune.commands.train import train
from edgeprune.commands.validate import validate

__all__ = ["compress", "export", "inspect", "profile", "train", "validate"]
