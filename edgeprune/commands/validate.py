"""`edgeprune validate`: two files, compared in their runtime."""

from __future__ import annotations

from edgeprune.data import open_data
from edgeprune.measure.validation import validate_files
from edgeprune.progress import Progress, Silent
from edgeprune.requests import ValidateRequest
from edgeprune.results import ValidateRecord
from edgeprune.usercode import running_user_code


@running_user_code()
def validate(request: ValidateRequest, progress: Progress | None = None) -> ValidateRecord:
    """Compare two ONNX files in onnxruntime: accuracy, parity, size, latency.

    Raises:
        InputError: a file or the data is wrong or they do not fit each other.
    """
    return validate_files(request, open_data(request.data), progress=progress or Silent())
