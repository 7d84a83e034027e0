"""The command line: `casemate`, what a data owner, a publisher or an auditor types."""

from __future__ import annotations

from casemate.client.cli.benching import bench
from casemate.client.cli.calls import infer, keygen
from casemate.client.cli.conforming import conformance
from casemate.client.cli.doctoring import doctor
from casemate.client.cli.group import main
from casemate.client.cli.inspecting import inspect
from casemate.client.cli.measuring import measure
from casemate.client.cli.models import models
from casemate.client.cli.objects import infer_sealed, seal_data_command
from casemate.client.cli.policies import policy
from casemate.client.cli.receipts import receipt
from casemate.client.cli.releasing import releases
from casemate.client.cli.sealing import seal_model_command
from casemate.client.cli.verifying import verify
from casemate.client.cli.watching import top

__all__ = ["main"]

for _command in (
    *(verify, models, infer, infer_sealed, inspect, measure, keygen, seal_model_command),
    *(seal_data_command, receipt, conformance, policy, releases, doctor, bench, top),
):
    main.add_command(_command)
