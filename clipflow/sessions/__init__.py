"""Models on runtimes: one module a runtime, one Protocol (base), one table (registry)."""

import sys

# OpenVINO tells its makers about every start through this package, and does without where it cannot be imported.
sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
